"""Links of operators that only move numbers: to other axes, to other places of an axis, to another shape."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ptq.passes.channels.links import (
    Axis,
    Kept,
    Link,
    Tie,
    alike,
    by_place,
    extent,
    one_to_one,
    positive,
    rank,
)  # fmt: skip
from ptq.passes.channels.recurrent_links import GATES
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant


def concat(node: ir.Node) -> Iterator[Link]:
    """Link the parts of a Concat to their places behind."""
    out, start = node.outputs[0], 0
    axis = positive(node.attributes.get_int("axis", 0), out)
    for part in node.inputs:
        if part is None:
            return
        yield from alike(part, out, frozenset({axis}))
        size = extent(Axis(part, axis))
        if size is None:
            return
        yield Tie(Axis(part, axis), Axis(out, axis), (np.arange(size), start + np.arange(size)))
        start += size


def split(node: ir.Node) -> Iterator[Link]:
    """Link the parts of a Split to where they come from; an axis that is given as a computed size is left alone."""
    source, start = node.inputs[0], 0
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if source is None or (sizes is not None and constant(sizes) is None):
        return
    axis = positive(node.attributes.get_int("axis", 0), source)
    for part in node.outputs:
        yield from alike(source, part, frozenset({axis}))
        size = extent(Axis(part, axis))
        if size is None:
            return
        yield Tie(Axis(source, axis), Axis(part, axis), (start + np.arange(size), np.arange(size)))
        start += size


def keep_split(node: ir.Node, kept: Kept) -> None:
    """Write how much of each part is left."""
    source = node.inputs[0]
    if source is None or node.graph is None:
        return
    axis = positive(node.attributes.get_int("axis", 0), source)
    masks = [kept(Axis(part, axis)) for part in node.outputs]
    if all(mask.all() for mask in masks):
        return
    left = np.array([int(mask.sum()) for mask in masks], np.int64)
    sizes = add_initializer(node.graph, fresh_name(node.graph, f"{node.outputs[0].name}_sizes"), left)
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, sizes)


def transpose(node: ir.Node) -> Iterator[Link]:
    """Link each axis to where it goes."""
    source, out = node.inputs[0], node.outputs[0]
    known = rank(source)
    if source is not None and known is not None:
        for place, axis in enumerate(node.attributes.get_ints("perm", tuple(reversed(range(known))))):
            yield from one_to_one(Axis(source, axis), Axis(out, place))


def squeeze(node: ir.Node) -> Iterator[Link]:
    """Link the axes around one that comes or goes: all that have more than one position, in order."""
    source, out = node.inputs[0], node.outputs[0]
    if source is not None:
        yield from zip_axes(source, out, _not_one(source), _not_one(out))


def _not_one(value: ir.Value) -> list[int]:
    return [axis for axis in range(rank(value) or 0) if extent(Axis(value, axis)) != 1]


def zip_axes(first: ir.Value, second: ir.Value, of_first: list[int], of_second: list[int]) -> Iterator[Link]:
    """Link axes in pairs, if there are as many."""
    for one, other in zip(of_first, of_second, strict=True) if len(of_first) == len(of_second) else ():
        yield from one_to_one(Axis(first, one), Axis(second, other))


def flatten(node: ir.Node) -> Iterator[Link]:
    """Link what a Flatten leaves as the outermost axis behind its cut."""
    source, out = node.inputs[0], node.outputs[0]
    if source is not None and rank(source) is not None:
        cut = positive(node.attributes.get_int("axis", 1), source)
        yield from merged(source, out, list(range(cut, rank(source) or 0)), 1)


def reshape(node: ir.Node) -> Iterator[Link]:
    """Link the outermost axis of each stretch that a Reshape merges or divides, if its sizes are constant."""
    source, out, sizes = node.inputs[0], node.outputs[0], constant(node.inputs[1])
    if source is None or sizes is None or rank(source) is None or len(sizes) != rank(out):
        return
    for ins, outs in stretches(_extents(source), _extents(out)):
        if len(outs) == 1:
            yield from merged(source, out, ins, outs[0])
        elif len(ins) == 1:
            yield from merged(out, source, outs, ins[0])


def merged(wide: ir.Value, narrow: ir.Value, axes: list[int], into: int) -> Iterator[Link]:
    """Link the outermost of some axes that may leave to its places along the one that they become."""
    known = [extent(Axis(wide, axis)) for axis in axes]
    many = [place for place, size in enumerate(known) if size != 1]
    place = next((each for each in many if not _is_directions(Axis(wide, axes[each]))), None)
    if place is not None and None not in known:
        yield from by_place(Axis(wide, axes[place]), Axis(narrow, into), math.prod(known[place + 1 :]))  # type: ignore[arg-type]


def _is_directions(axis: Axis) -> bool:
    """Whether an axis is that of the directions of a recurrent layer, in which cells leave together."""
    value, place = axis
    while (node := value.producer()) is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        value = node.inputs[0]
        place = node.attributes.get_ints("perm", tuple(reversed(range(rank(value) or 0))))[place]
    return node is not None and node.op_type in GATES and place == (1 if value is node.outputs[0] else 0)


def _extents(value: ir.Value) -> list[int | str | None]:
    shape = value.shape if value.shape is not None else ir.Shape([])
    return [size if isinstance(size, int) else size.value for size in shape]


def stretches(before: list[int | str | None], after: list[int | str | None]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield runs of axes with the same product in two shapes, from the front and from the back, as far as is known.

    Example:
        >>> list(stretches(["N", 8, 3, 3], ["N", 72]))
        [([0], [0]), ([1, 2, 3], [1])]
    """
    front = _runs(list(enumerate(before)), list(enumerate(after)))
    taken = {axis for run, _ in front for axis in run}, {axis for _, run in front for axis in run}
    rest = [(axis, size) for axis, size in enumerate(before) if axis not in taken[0]]
    others = [(axis, size) for axis, size in enumerate(after) if axis not in taken[1]]
    back = _runs(rest[::-1], others[::-1])
    yield from front
    yield from ((sorted(ins), sorted(outs)) for ins, outs in back)


def _runs(
    before: list[tuple[int, int | str | None]], after: list[tuple[int, int | str | None]]
) -> list[tuple[list[int], list[int]]]:
    """Take axes of both until their products are equal, again and again, until an unknown extent ends it."""
    found, left, right = [], list(before), list(after)
    while left and right:
        if isinstance(left[0][1], str) or isinstance(right[0][1], str):
            if left[0][1] != right[0][1]:
                break
            found.append(([left.pop(0)[0]], [right.pop(0)[0]]))
            continue
        ins, outs, products = list[int](), list[int](), [1, 1]
        while not (ins and outs) or products[0] != products[1]:
            side, other = (left, ins) if not ins or (outs and products[0] < products[1]) else (right, outs)
            if not side or not isinstance(size := side[0][1], int):
                return found
            other.append(side.pop(0)[0])
            products[side is right] *= size
        found.append((ins, outs))
    return found


def keep_reshaped(node: ir.Node, kept: Kept) -> None:
    """Write the extents that are left into a constant shape."""
    sizes, out = constant(node.inputs[1]), node.outputs[0]
    if sizes is None or node.graph is None or len(sizes) != rank(out):
        return
    left = [_left(Axis(out, axis), int(size), kept) for axis, size in enumerate(sizes)]
    if left != sizes.tolist():
        name = fresh_name(node.graph, f"{out.name}_shape")
        node.replace_input_with(1, add_initializer(node.graph, name, np.array(left, np.int64)))


def _left(axis: Axis, size: int, kept: Kept) -> int:
    return size if size <= 0 or extent(axis) is None else int(kept(axis).sum())


def keep_resized(node: ir.Node, kept: Kept) -> None:
    """Write the channels that are left into the sizes of a Resize."""
    value = node.inputs[3] if len(node.inputs) > 3 else None
    sizes = constant(value)
    if value is None or sizes is None or sizes.size < 2:
        return
    left = [_left(Axis(node.outputs[0], axis), int(size), kept) for axis, size in enumerate(sizes)]
    value.const_value = ir.tensor(np.array(left, sizes.dtype), name=value.name)


def slices(node: ir.Node) -> Iterator[Link]:
    """Link what a Slice with constant bounds takes, where it takes neighbors in order."""
    source, out, cuts = node.inputs[0], node.outputs[0], cuts_of(node)
    if source is None or cuts is None:
        return
    yield from alike(source, out, frozenset(cuts))
    for axis, (start, end, step) in cuts.items():
        size = extent(Axis(source, axis))
        if step == 1 and size is not None:
            at = np.arange(size)[start:end]
            yield Tie(Axis(source, axis), Axis(out, axis), (at, np.arange(len(at))))


def cuts_of(node: ir.Node) -> dict[int, tuple[int, int, int]] | None:
    """Return the axes that a Slice cuts -> start, end and step; None where they are not constant."""
    source = node.inputs[0]
    parts = [constant(value) for value in node.inputs[1:]]
    if source is None or rank(source) is None or len(parts) < 2 or any(part is None for part in parts):
        return None
    columns = [part.reshape(-1).tolist() for part in parts if part is not None]
    starts, ends = columns[:2]
    axes = columns[2] if len(columns) > 2 else range(len(starts))
    steps = columns[3] if len(columns) > 3 else [1] * len(starts)
    places = [positive(axis, source) for axis in axes]
    return {place: cut for place, *cut in zip(places, starts, ends, steps, strict=True)}  # type: ignore[misc]


def keep_slices(node: ir.Node, kept: Kept) -> None:
    """Cut at the same channels, by their new numbers."""
    source, cuts = node.inputs[0], cuts_of(node)
    if source is None or cuts is None or node.graph is None:
        return
    changed = dict(cuts)
    for axis, (start, end, _step) in cuts.items():
        size = extent(Axis(source, axis))
        mask = None if size is None else kept(Axis(source, axis))
        if mask is not None and not mask.all():
            first, last, _ = slice(start, end).indices(len(mask))
            changed[axis] = int(mask[:first].sum()), int(mask[:last].sum()), 1
    if changed == cuts:
        return
    columns = (*zip(*changed.values(), strict=True), tuple(changed))
    named = dict(zip(("starts", "ends", "steps", "axes"), columns, strict=True))
    node.resize_inputs(5)
    for index, name in enumerate(("starts", "ends", "axes", "steps"), 1):
        fresh = fresh_name(node.graph, f"{node.outputs[0].name}_{name}")
        node.replace_input_with(index, add_initializer(node.graph, fresh, np.array(named[name], np.int64)))


def depth_to_space(node: ir.Node) -> Iterator[Link]:
    """Link a channel behind to the channels in front that become its pixels."""
    source, out = node.inputs[0], node.outputs[0]
    side = node.attributes.get_int("blocksize", 1)
    channels = extent(Axis(out, 1))
    if source is None or channels is None or extent(Axis(source, 1)) != channels * side**2:
        return
    in_front = np.arange(channels * side**2)
    first = node.attributes.get_string("mode", "DCR") == "DCR"
    yield Tie(Axis(source, 1), Axis(out, 1), (in_front, in_front % channels if first else in_front // side**2))
