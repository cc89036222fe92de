"""Split of a layer's kernel into a coarse and a fine part: longer words at its center, where they are worth it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptq.core.layer import LinearLayer
from ptq.core.spec import PerTensor, QuantSpec
from ptq.core.widths import MAX_BITS, Widths
from ptq.solving.choices import LayerChoice

FAR_WIDER = 2.0
"""Times the others' reach that the center tap needs, in most output features, for a split to be tried."""


def choose_split(layer: LinearLayer, weight: NDArray[np.float32], choice: LayerChoice) -> Widths | str:
    """Return the longer words to try for a layer, or why there are none; an empty reason if nobody asked.

    Source:
        Coarse & fine weight splitting for re-parameterized networks: a branch of 1x1 and one of the identity, merged
        into a 3x3 kernel, leave its center tap far wider than the rest.
    """
    if choice.split == "never" or choice.spec.num_bits >= MAX_BITS:
        return ""
    return candidate(layer, weight, choice)


def candidate(layer: LinearLayer, weight: NDArray[np.float32], choice: LayerChoice) -> Widths | str:
    """Return the longer words that a choice asks for, or why there are none; empty if nothing speaks for them."""
    if choice.split == "whole":
        longer = min(2 * choice.spec.num_bits, MAX_BITS)
        rows, columns = np.full(len(weight), choice.spec.num_bits, np.int8), np.full(weight.shape[1], longer, np.int8)
        return Widths(rows, columns)
    kernel = layer.unfold.kernel
    has_center = layer.op_type == "Conv" and np.prod(kernel) > 1 and all(size % 2 for size in kernel)
    if not has_center:
        return "" if choice.split == "auto" else "no split: its kernel has no centre"
    center = np.arange(int(np.prod(kernel))) == int(np.prod(kernel)) // 2
    if choice.split == "auto" and _center_over_rest(weight, center, choice.spec) < FAR_WIDER:
        return ""
    return Widths.at_taps((len(weight), weight.shape[1]), choice.spec.num_bits, center)


def _center_over_rest(weight: NDArray[np.float32], center: NDArray[np.bool_], spec: QuantSpec) -> float:
    """Return the median feature's reach of the center tap over that of the others, where they share a scale."""
    taps = np.abs(weight.reshape(len(weight), -1, len(center)))
    if isinstance(spec.granularity, PerTensor):
        taps = taps.reshape(1, -1, len(center))
    inner, outer = taps[..., center].max((1, 2)), taps[..., ~center].max((1, 2))
    return float(np.median(inner / np.maximum(outer, 1e-30 + 1e-6 * inner)))
