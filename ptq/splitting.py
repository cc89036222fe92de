"""How one layer's weight is quantized, and whether its kernel is worth splitting into a coarse and a fine part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.points import MAX_BITS, Points
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerTensor, QuantSpec
from ptq.passes._linear import LinearLayer, constant, describe_linear
from ptq.passes.split_center import can_split, coarse_and_fine
from ptq.weights import Rtn, WeightMethod

Split = Literal["auto", "never", "center", "whole"]

BRANCH_DB = 36.0
"""Signal to error of an 8-bit weight from which on a second convolution would add more error than it takes away: its
output is rounded to 8 bits too."""

FAR_WIDER = 2.0
"""How far the centre tap has to reach beyond the others, in most output features, for a split to be tried."""


@dataclass(frozen=True)
class LayerChoice:
    """How the weight of one layer is quantized.

    Attributes:
        method: Quantizes it.
        spec: Its grid.
        split: Which weights become sums of a coarse and a fine point: the kernel's centre where it is far wider than
            the rest, and then only if that pays (`auto`); the centre of any kernel (`center`); all weights (`whole`).
    """

    method: WeightMethod
    spec: QuantSpec
    split: Split = "never"


def choose_split(layer: LinearLayer, weight: NDArray[np.float32], choice: LayerChoice) -> Points | str:
    """The sums to try for a layer, or why there are none; an empty reason if nobody asked.

    Source:
        Coarse & fine weight splitting for re-parameterised networks: a branch of 1x1 and one of the identity, merged
        into a 3x3 kernel, leave its centre tap far wider than the rest.
    """
    if choice.split == "never" or choice.spec.num_bits >= MAX_BITS:
        return ""
    return _candidate(layer, weight, choice)


@dataclass(frozen=True)
class Branches:
    """Layers of 8-bit weights and their second convolutions.

    Attributes:
        chosen: Layer name -> its choice.
        rejected: Layer name -> why it stays in one piece.
    """

    chosen: Mapping[str, LayerChoice]
    rejected: Mapping[str, str]


def choose_branches(model: ir.Model, choose: Callable[[LinearLayer], LayerChoice]) -> Branches:
    """Which layers of 8-bit weights become two convolutions, because no sum fits their kernel.

    Args:
        model: Prepared float model.
        choose: The choice for each layer.

    Returns:
        Those that gain from it. Without being asked only where all weights share a scale: a second convolution costs
        time, and with a scale for each feature 8 bits are mostly fine enough.
    """
    chosen, rejected = {}, {}
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type == "Conv" and not node.domain else None
        layer = "" if weight is None else describe_linear(node)
        if not isinstance(layer, LinearLayer) or weight is None:
            continue
        choice = choose(layer)
        asked = choice.split == "center" or (choice.split == "auto" and choice.spec.granularity == PerTensor())
        if choice.spec.num_bits < MAX_BITS or not asked:
            continue
        found = _candidate(layer, layer.layout.to_matrix(weight), choice)
        reason = found if isinstance(found, str) else _not_worth_a_branch(node, weight, layer, choice)
        if not reason and isinstance(found, Points):
            chosen[layer.name] = choice
        elif reason:
            rejected[layer.name] = reason
    return Branches(chosen, rejected)


def _not_worth_a_branch(node: ir.Node, weight: NDArray[np.float32], layer: LinearLayer, choice: LayerChoice) -> str:
    """Why a layer is better off in one piece, if so. The coarse part is exact, so the fine one's error is the whole."""
    if not can_split(node):
        return "no split: its pads are not given"
    _, fine = coarse_and_fine(weight, per_tensor=choice.spec.granularity == PerTensor())
    errors = [_rounding_energy(layer.layout.to_matrix(part), choice.spec) for part in (weight, fine)]
    signal = float(np.square(weight, dtype=np.float64).sum())
    if errors[0] <= signal * 10 ** (-BRANCH_DB / 10):
        return f"split rejected: 8 bits keep more than {BRANCH_DB:.0f} dB of its weight"
    return "split rejected: the rest is as wide" if errors[1] >= errors[0] else ""


def _rounding_energy(weight: NDArray[np.float32], spec: QuantSpec) -> float:
    decoded = Rtn().quantize(LayerProblem("", weight, spec)).decode()
    return float(np.square(decoded - weight, dtype=np.float64).sum())


def _candidate(layer: LinearLayer, weight: NDArray[np.float32], choice: LayerChoice) -> Points | str:
    if choice.split == "whole":
        return Points(np.ones(len(weight), np.int8), np.full(weight.shape[1], 2, np.int8))
    kernel = layer.unfold.kernel
    has_center = layer.op_type == "Conv" and np.prod(kernel) > 1 and all(size % 2 for size in kernel)
    if not has_center:
        return "" if choice.split == "auto" else "no split: its kernel has no centre"
    center = np.arange(int(np.prod(kernel))) == int(np.prod(kernel)) // 2
    if choice.split == "auto" and _center_over_rest(weight, center, choice.spec) < FAR_WIDER:
        return ""
    return Points.at_taps(len(weight), weight.shape[1], center)


def _center_over_rest(weight: NDArray[np.float32], center: NDArray[np.bool_], spec: QuantSpec) -> float:
    """Reach of the centre tap over that of the others, where they share a scale: the median feature's."""
    taps = np.abs(weight.reshape(len(weight), -1, len(center)))
    if isinstance(spec.granularity, PerTensor):
        taps = taps.reshape(1, -1, len(center))
    inner, outer = taps[..., center].max((1, 2)), taps[..., ~center].max((1, 2))
    return float(np.median(inner / np.maximum(outer, 1e-30 + 1e-6 * inner)))
