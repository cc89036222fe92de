"""Flat ends of functions: what a channel is constant for may lie just beyond an edge, or far from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.core.channel_spread import ChannelSpread
from ptq.passes.channels.groups import links_of
from ptq.passes.channels.links import Axis, Indices, Mask, Tie, extent
from ptq.passes.channels.value_links import BROADCAST
from ptq.passes.gates import ramp_of
from ptq.passes.linear import constant

HARD_SWISH_FOOT = -3.0
CONVS = ("Conv", "ConvTranspose")

SOFT = {
    "Celu": (-9.2, np.inf), "Elu": (-9.2, np.inf), "Erf": (-2.75, 2.75), "Exp": (-9.2, np.inf), "Gelu": (-4.1, np.inf),
    "Mish": (-11.8, np.inf), "Selu": (-9.7, np.inf), "Sigmoid": (-9.2, 9.2), "Softplus": (-9.2, np.inf),
    "Swish": (-11.8, np.inf), "Tanh": (-4.95, 4.95),
}  # fmt: skip
"""Functions that come to rest -> where they are 1e-4 from it, a fortieth of a step of 8 bits over 0 to 1."""


@dataclass(frozen=True)
class FlatEnds:
    """A function that is flat below one value, above another, or both.

    Attributes:
        low: Below this it is flat: a number, or one per channel.
        high: Above this it is flat.
    """

    low: Float | float
    high: Float | float

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


@dataclass(frozen=True)
class Cause:
    """Positions of an input that positions of a result depend on: `into[i]` of the result on `at[i]`."""

    axis: Axis
    at: Indices
    into: Indices


@dataclass(frozen=True)
class Margins:
    """How far channels are from where they would begin to move.

    Attributes:
        causes: Axis -> what its channels depend on, back to layers that mix channels; in the order of computing.
        share: Movement that counts as none, as a share of a tensor's step at 8 bits.
    """

    causes: Mapping[Axis, tuple[Cause, ...]]
    share: float

    @staticmethod
    def behind(axes: Iterable[Axis], graph: ir.Graph, share: float) -> Margins:
        """Follow the channels of some axes back."""
        found, stack = dict[Axis, tuple[Cause, ...]](), list(axes)
        while stack:
            axis = stack.pop()
            if axis not in found:
                found[axis] = tuple(_causes(axis))
                stack.extend(cause.axis for cause in found[axis])
        order = {value: place for place, node in enumerate(graph) for value in node.outputs}
        return Margins({axis: found[axis] for axis in sorted(found, key=lambda each: order.get(each.value, -1))}, share)

    def asked(self) -> Iterator[Axis]:
        """Yield the axes whose spread has to be known."""
        for axis, causes in self.causes.items():
            if _is_judged(axis.value.producer()):
                yield from (cause.axis for cause in causes)

    def of(self, spreads: Mapping[Axis, ChannelSpread]) -> dict[Axis, Float]:
        """Return the distance of each channel from where it would begin to move, as `FlatEnds.margin`, by axis.

        Infinite where no function holds it still; minus infinity where one does, and nobody looked.

        Args:
            spreads: What was seen along the axes asked for.
        """
        found = dict[Axis, Float]()
        for axis, causes in self.causes.items():
            least, most = np.full(extent(axis) or 0, np.inf), np.full(extent(axis) or 0, -np.inf)
            for cause in causes:
                each, zero = self._through(axis, cause, found[cause.axis], spreads.get(cause.axis))
                np.minimum.at(least, cause.into, each[cause.at])
                np.maximum.at(most, cause.into, np.where(zero, each, -np.inf)[cause.at])
            found[axis] = np.maximum(least, most)
        return found

    def _through(self, axis: Axis, cause: Cause, before: Float, seen: ChannelSpread | None) -> tuple[Float, Mask]:
        """Return margins as one input tells them, and where it alone is reason enough: the zeros of a product."""
        node, nowhere = axis.value.producer(), np.zeros(len(before), np.bool_)
        if not _is_judged(node):
            return before, nowhere
        if node is None or seen is None:
            return np.full(len(before), -np.inf), nowhere
        limit, ends = self.share * seen.step, _ends(node, len(before))
        still = seen.width <= limit
        if ends is not None:
            return np.where(still, before, ends.margin(seen)), nowhere
        zero = still & (np.maximum(seen.high, -seen.low) <= limit) & (node.op_type == "Mul")
        return np.where(still, before, np.inf), zero  # what moves here is not why the result does not


def _causes(axis: Axis) -> Iterator[Cause]:
    """Yield the activations that channels depend on, channel by channel."""
    node = axis.value.producer()
    if node is None or node.domain:
        return
    if node.op_type in CONVS:
        yield from _of_group(node, axis)
        return
    for link in links_of(node):
        for one, other, (at, into) in _both_ways(link) if isinstance(link, Tie) else ():
            if other == axis and one.value in node.inputs and constant(one.value) is None:
                yield Cause(one, at, into)


def _both_ways(tie: Tie) -> Iterator[tuple[Axis, Axis, tuple[Indices, Indices]]]:
    yield tie.first, tie.second, tie.at
    yield tie.second, tie.first, tie.at[::-1]


def _of_group(node: ir.Node, axis: Axis) -> Iterator[Cause]:
    """Yield the inputs of a convolution in groups; without groups, a channel is constant for its weights alone."""
    source, groups = node.inputs[0], node.attributes.get_int("group", 1)
    channels, features = None if source is None else extent(Axis(source, 1)), extent(axis)
    if source is None or channels is None or features is None or groups == 1 or axis.axis != 1:
        return
    each, wide = channels // groups, features // groups
    into = np.repeat(np.arange(features), each)
    yield Cause(Axis(source, 1), into // wide * each + np.tile(np.arange(each), features), into)


def _is_judged(node: ir.Node | None) -> bool:
    """Whether a result may be constant though its input is not."""
    return node is not None and (
        node.op_type in BROADCAST or node.op_type in (*CONVS, "MatMul") or _ends(node, 0) is not None
    )


def _ends(node: ir.Node, count: int) -> FlatEnds | None:
    """Return where a function starts and ceases to move, for some channels; None for functions that always do."""
    ramp = ramp_of(node)
    if ramp is not None:
        return FlatEnds(ramp.foot, ramp.top)
    if node.op_type in SOFT:
        return FlatEnds(*SOFT[node.op_type])
    match node.op_type:
        case "Relu":
            return FlatEnds(0.0, np.inf)
        case "HardSwish":
            return FlatEnds(HARD_SWISH_FOOT, np.inf)
        case "LeakyRelu" if node.attributes.get_float("alpha", 0.01) == 0:
            return FlatEnds(0.0, np.inf)
        case "PRelu":
            slope = constant(node.inputs[1])
            told = slope is not None and slope.size in (1, count)
            flat = slope.reshape(-1) == 0 if told and slope is not None else np.zeros(1, np.bool_)
            return FlatEnds(np.where(np.broadcast_to(flat, count), 0.0, -np.inf), np.inf)
        case "Clip":
            low, high = (constant(value) for value in (*node.inputs[1:], None, None)[:2])
            return FlatEnds(_number(low, -np.inf), _number(high, np.inf))
        case _:
            return None


def _number(array: object, default: float) -> float:
    return float(array.reshape(-1)[0]) if isinstance(array, np.ndarray) and array.size == 1 else default
