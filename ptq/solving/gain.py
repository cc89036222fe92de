"""Gain of a layer: how much of the float output is left in its own where the layers before it err.

Weights of least error shrink what they make of noisy inputs, as a regression does, and rounded values that pass through
activations shrink as well. Noise averages out over positions and channels; a gain below 1 is common to all of them,
multiplies from layer to layer, and is what the outputs of a deep network see in the end. Layers with no other one
behind them are left alone: nothing averages their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.core.damping import LayerMoments
from ptq.passes.data_flow import ROUNDED

Side = Callable[[Float], tuple[float, float]]
"""Quantized weight -> sum of products of its outputs with the float ones, and the energy of those."""

LIMIT = 2.0
"""Largest factor, either way: beyond it little of the signal is left, and a scale brings none of it back."""


def with_layers_behind(graph: ir.Graph) -> frozenset[str]:
    """Return the names of results of linear and recurrent operators that others of them depend on."""
    leading, found = set[ir.Value](), set[str]()
    for node in reversed(list(graph)):
        leads = any(value in leading for value in node.outputs)
        if node.op_type in ROUNDED and leads:
            found.update(str(value.name) for value in node.outputs)
        if leads or node.op_type in ROUNDED:
            leading.update(value for value in node.inputs if value is not None)
    return frozenset(found)


def sides_of(moments: LayerMoments, weight: NDArray[np.float32]) -> tuple[Side, ...]:
    """Return what each half of the samples tells of the layer's gain: nothing where both networks give it the same.

    Args:
        moments: Moments of the layer's input, about their means where a bias takes up every mean error.
        weight: Float weight. Shape [out, in].
    """
    if len(moments.pooled) < 2 or all(half.matched for half in moments.rows):
        return ()
    return tuple(half.along(weight) for half in moments.pooled)


def gain_of(sides: Sequence[Side], quantized: Float) -> float:
    """Estimate the slope of a layer's mean output of each sample over that of the float network.

    One number for the whole layer, from the means of samples, where most of the noise is gone. It is held to 1 by its
    own uncertainty, which the two halves of the samples tell: a gain that one half does not show is none.

    Args:
        sides: The two halves, see `sides_of`.
        quantized: Weight that the quantized network uses. Shape [out, in].

    Returns:
        The gain, 1 where nothing can be told.
    """
    if len(sides) < 2:
        return 1.0
    terms = [side(quantized) for side in sides]
    first, second = (_slope(*term) for term in terms)
    off = _slope(*(sum(each) for each in zip(*terms, strict=True))) - 1.0
    variance = (first - second) ** 2 / 4
    kept = max(1.0 - variance / off**2, 0.0) if off else 0.0
    return float(np.clip(1.0 + kept * off, 1 / LIMIT, LIMIT))


def _slope(common: float, signal: float) -> float:
    return common / signal if signal > 0 else 1.0
