"""Groups of channels: all positions of all axes that have to leave a model together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.channels.layer_links import conv, conv_transpose, gather, gemm, keep_gathered, keep_groups, matmul
from ptq.passes.channels.links import Axis, Indices, Kept, Link, Mask, Read, Tie, extent
from ptq.passes.channels.recurrent_links import GATES, keep_cells, recurrent
from ptq.passes.channels.shape_links import (
    concat,
    depth_to_space,
    flatten,
    keep_reshaped,
    keep_resized,
    keep_slices,
    keep_split,
    reshape,
    slices,
    split,
    squeeze,
    transpose,
)  # fmt: skip
from ptq.passes.channels.size_links import resize, shape
from ptq.passes.channels.value_links import (
    BROADCAST,
    POOLS,
    REDUCTIONS,
    UNARY,
    along,
    broadcast,
    over_last,
    pad,
    per_channel,
    pool,
    reduce,
    unary,
)  # fmt: skip

LINKS: Mapping[str, Callable[[ir.Node], Iterator[Link]]] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys(GATES, recurrent),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization"), along),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), per_channel),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "LayerNormalization": over_last,
    "MatMul": matmul,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Shape": shape,
    "Slice": slices,
    "Split": split,
    "Transpose": transpose,
}
"""Operator -> its links; an axis that an operator has no link for stays as it is."""

MANY = frozenset({"Split", *GATES})
"""Operators whose links tell of all of their outputs."""

KEEP: Mapping[str, Callable[[ir.Node, Kept], None]] = {
    **dict.fromkeys(GATES, keep_cells),
    "Conv": keep_groups,
    "ConvTranspose": keep_groups,
    "Gather": keep_gathered,
    "Reshape": keep_reshaped,
    "Resize": keep_resized,
    "Slice": keep_slices,
    "Split": keep_split,
}
"""Operator -> what writes down how much of its axes is left; weights are cut apart from that."""


@dataclass(frozen=True)
class ChannelGroups:
    """Channels of a model, in groups that can only leave together.

    Attributes:
        axes: Axis -> group of each of its positions.
        fixed: Whether a group cannot leave: something that is not understood, or a user, sees it.
        reads: What layers sum over.
        wide: Axes between convolutions, whose kernels like certain counts.
    """

    axes: Mapping[Axis, Indices]
    fixed: Mask
    reads: tuple[Read, ...]
    wide: frozenset[Axis]

    @staticmethod
    def of(model: ir.Model) -> ChannelGroups:
        """Follow every channel through a prepared model."""
        links = {node: tuple(links_of(node)) for node in model.graph}
        starts, total = dict[Axis, int](), 0
        for axis in _axes(model):
            starts[axis], total = total, total + (extent(axis) or 0)
        ties = [_as_tie(link) for found in links.values() for link in found]
        pairs = [(starts[tie.first] + tie.at[0], starts[tie.second] + tie.at[1]) for tie in ties]
        groups = connected(total, pairs)
        axes = {axis: groups[start : start + (extent(axis) or 0)] for axis, start in starts.items()}
        fixed = np.zeros(int(groups.max(initial=-1)) + 1, np.bool_)
        for axis in _seen_elsewhere(model, links, axes):
            fixed[axes[axis]] = True
        reads = tuple(link for found in links.values() for link in found if isinstance(link, Read))
        convs = [node for node in links if node.op_type in ("Conv", "ConvTranspose")]
        ends = {Axis(value, 1) for node in convs for value in (node.inputs[0], node.outputs[0]) if value is not None}
        return ChannelGroups(axes, fixed, tuple(read for read in reads if read.source in axes), frozenset(ends))

    @cached_property
    def sources(self) -> Mapping[Axis, tuple[Read, ...]]:
        """Axis of an activation -> who sums over it; those of groups that cannot leave left out."""
        found = dict[Axis, tuple[Read, ...]]()
        for read in self.reads:
            if not self.fixed[self.axes[read.source]].all():
                found[read.source] = (*found.get(read.source, ()), read)
        return found


def links_of(node: ir.Node) -> Iterator[Link]:
    """Yield the links of a node between axes with a fixed number of positions.

    An operator may say more in further outputs, such as the mask of a Dropout: then nothing is understood.
    """
    links = LINKS.get(node.op_type)
    further = any(value.name and (value.uses() or value.is_graph_output()) for value in node.outputs[1:])
    if links is None or node.domain not in ("", "ai.onnx") or (further and node.op_type not in MANY):
        return
    for link in links(node):
        if isinstance(link, Read):
            if extent(link.source) == extent(link.weight) and (extent(link.source) or 0) > 1:
                yield link
        elif extent(link.first) and extent(link.second):
            yield link


def _axes(model: ir.Model) -> Iterator[Axis]:
    """Yield every axis with a fixed number of positions; one position stays, but holds others that are tied to it."""
    values = (*model.graph.initializers.values(), *model.graph.inputs, *(v for n in model.graph for v in n.outputs))
    for value in values:
        for place in range(0 if value.shape is None else len(value.shape)):
            if extent(Axis(value, place)):
                yield Axis(value, place)


def _seen_elsewhere(
    model: ir.Model, links: Mapping[ir.Node, Sequence[Link]], axes: Mapping[Axis, Indices]
) -> Iterator[Axis]:
    """Yield the axes that users see, that a body reads, or that an operator takes without a link."""
    known = {node: _mentioned(found) for node, found in links.items()}
    for axis in axes:
        maker = axis.value.producer()
        told = maker is None or axis in known[maker]
        free = maker is not None or axis.value.is_initializer()
        users = [use.node for use in axis.value.uses()]
        readers = all(user in known and axis in known[user] for user in users)
        if not (told and free and readers) or axis.value.is_graph_output() or axis.value.is_graph_input():
            yield axis


def _as_tie(link: Link) -> Tie:
    """Return a link as a tie: the inputs that a layer sums over leave its weight as well."""
    if isinstance(link, Tie):
        return link
    every = np.arange(extent(link.source) or 0)
    return Tie(link.source, link.weight, (every, every))


def _mentioned(links: Sequence[Link]) -> set[Axis]:
    ends = [(link.first, link.second) if isinstance(link, Tie) else (link.source, link.weight) for link in links]
    return {axis for pair in ends for axis in pair}


def connected(count: int, pairs: Sequence[tuple[Indices, Indices]]) -> NDArray[np.int64]:
    """Number the connected components of a graph: shape [count], from 0 on, in the order of their first nodes.

    Args:
        count: Number of nodes.
        pairs: Edges, as many pairs of equally long arrays of nodes as there are.

    Example:
        >>> connected(5, [(np.array([0, 3]), np.array([2, 4]))]).tolist()
        [0, 1, 0, 2, 2]
    """
    first = np.concatenate([pair[0] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    second = np.concatenate([pair[1] for pair in pairs]) if pairs else np.zeros(0, np.int64)
    least = np.arange(count)
    while True:
        lower = least.copy()
        np.minimum.at(lower, least[first], least[second])
        np.minimum.at(lower, least[second], least[first])
        lower = lower[lower]
        if np.array_equal(lower, least):
            break
        least = lower
    return np.unique(least, return_inverse=True)[1].astype(np.int64)
