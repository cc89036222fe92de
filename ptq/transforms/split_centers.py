"""Splitting of wide center taps: those of 8-bit kernels become convolutions of their own, before calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.calibration_set import CalibrationSet
from ptq.core.layer import LinearLayer
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerTensor, QuantSpec
from ptq.core.widths import MAX_BITS, Widths
from ptq.passes.linear import constant, describe_linear
from ptq.passes.split_center import SplitCenter, can_split, coarse_and_fine
from ptq.solving.choices import Choices, LayerChoice
from ptq.solving.splits import candidate
from ptq.transforms.rewritten import Rewritten
from ptq.weights import Rtn

BRANCH_DB = 36.0
"""Signal to error of an 8-bit weight from which on a second convolution would add more error than it takes away: its
output is rounded to 8 bits too."""


@dataclass(frozen=True)
class SplitCenters:
    """Give wide center taps of 8-bit kernels a convolution of their own, where the choices want it."""

    def rewrite(self, state: Rewritten, _calibration: CalibrationSet) -> Rewritten:
        """Split the convolutions that gain by it.

        Args:
            state: The model so far, and the choice for each layer. Not modified.

        Returns:
            The new state, with choices for the new layers.
        """
        branches = choose_branches(state.model, state.choices.choice)
        notes = [f"{name}: {why}" for name, why in branches.rejected.items() if why]
        chosen = branches.chosen
        if not chosen:
            return replace(state, notes=(*state.notes, *notes))
        divided = state.model.clone()
        bits = MAX_BITS - state.choices.saturates  # that many neighbors share without loss
        for per_tensor in (False, True):
            names = frozenset(
                name for name, each in chosen.items() if isinstance(each.spec.granularity, PerTensor) == per_tensor
            )
            SplitCenter(names, per_tensor, (1 << (bits - 1)) - 1)(divided)
        notes.insert(0, f"{len(chosen)} convolutions split into a coarse and a fine one: {', '.join(chosen)}")
        choices = _with_parts(state.choices, chosen, bits)
        return replace(state, model=divided, choices=choices, notes=(*state.notes, *notes))


def _with_parts(choices: Choices, chosen: Mapping[str, LayerChoice], bits: int) -> Choices:
    """Add choices for both parts of every layer that was split; coarse parts have words of `bits`."""
    whole = {name: replace(choice, split="never") for name, choice in chosen.items()}
    parts = {f"{name}_fine": choice for name, choice in whole.items()}
    for name, choice in whole.items():
        spec = replace(choice.spec, num_bits=bits, narrow_range=True)
        parts[f"{name}_coarse"] = replace(choice, spec=spec)
    coarse = frozenset(f"{name}_coarse" for name in chosen)
    return replace(choices, overrides={**choices.overrides, **parts}, coarse=coarse)


@dataclass(frozen=True)
class Branches:
    """Layers of 8-bit weights that become two convolutions, and those that stay one.

    Attributes:
        chosen: Layer name -> its choice.
        rejected: Layer name -> why it stays in one piece.
    """

    chosen: Mapping[str, LayerChoice]
    rejected: Mapping[str, str]


def choose_branches(model: ir.Model, choose: Callable[[LinearLayer], LayerChoice]) -> Branches:
    """Choose the layers of 8-bit weights that become two convolutions, because no sum fits their kernel.

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
        found = candidate(layer, layer.layout.to_matrix(weight), choice)
        reason = found if isinstance(found, str) else _not_worth_a_branch(node, weight, layer, choice)
        if not reason and isinstance(found, Widths):
            chosen[layer.name] = choice
        elif reason:
            rejected[layer.name] = reason
    return Branches(chosen, rejected)


def _not_worth_a_branch(node: ir.Node, weight: NDArray[np.float32], layer: LinearLayer, choice: LayerChoice) -> str:
    """Say why a layer is better off in one piece; empty if it is not.

    The coarse part is exact, so the fine one's error is the whole.
    """
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
