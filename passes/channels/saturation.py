"""Flat ends of functions: what a channel is constant for may lie just beyond an edge, or far from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.core.channel_spread import ChannelSpread
from ptq.passes.channels.links import Axis, extent
from ptq.passes.gates import ramp_of
from ptq.passes.linear import constant

THROUGH = frozenset({
    "AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Mul", "Reshape",
    "Squeeze", "Unsqueeze",
})  # fmt: skip
"""Operators behind which a channel is still constant for the reason it was in front, channels in the same place."""

HARD_SWISH_FOOT = -3.0


@dataclass(frozen=True)
class FlatEnds:
    """A function that is flat below one value, above another, or both.

    Attributes:
        source: The axis of its input.
        low: Below this it is flat.
        high: Above this it is flat.
    """

    source: Axis
    low: float
    high: float

    def margin(self, seen: ChannelSpread) -> Float:
        """Distance of what was seen from the edge, over how much the nearest value of a sample varies among samples.

        Args:
            seen: Spread of the input. Shape [channels].
        """
        below = _over(self.low - seen.high, seen.high - seen.low_of_highs)
        above = _over(seen.low - self.high, seen.high_of_lows - seen.low)
        return np.maximum(below, above)


def _over(distance: Float, range_of_samples: Float) -> Float:
    """Divide; what does not vary is infinitely far from where it is not."""
    moves = range_of_samples > 0
    return np.where(moves, distance / np.where(moves, range_of_samples, 1.0), np.where(distance >= 0, np.inf, -np.inf))


def flat_ends(axis: Axis) -> Iterator[FlatEnds]:
    """Yield the functions that may be why channels are constant, nearest first."""
    stack, known = [axis.value], {axis.value}
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is None or node.domain:
            continue
        source = node.inputs[0]
        edges = _edges(node)
        if edges is not None and source is not None:
            place = Axis(source, axis.axis)
            if extent(place) == extent(axis):
                yield FlatEnds(place, *edges)
        if edges is None and node.op_type in THROUGH:
            more = [each for each in node.inputs if each is not None and constant(each) is None and each not in known]
            known.update(more)
            stack.extend(more)


def _edges(node: ir.Node) -> tuple[float, float] | None:
    """Return where a function starts and ceases to move; None for functions that always do."""
    ramp = ramp_of(node)
    if ramp is not None:
        return ramp.foot, ramp.top
    match node.op_type:
        case "Relu":
            return 0.0, np.inf
        case "HardSwish":
            return HARD_SWISH_FOOT, np.inf
        case "Clip":
            ends = [constant(value) for value in (*node.inputs[1:], None, None)[:2]]
            low, high = (None if end is None or end.size != 1 else float(end.reshape(-1)[0]) for end in ends)
            return -np.inf if low is None else low, np.inf if high is None else high
        case _:
            return None
