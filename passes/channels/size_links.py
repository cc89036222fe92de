"""Links of values whose extents are asked for while the model runs, where the answer does not hang on channels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ptq.passes.channels.links import Axis, Link, extent, one_to_one, rank
from ptq.passes.channels.shape_links import cuts_of
from ptq.passes.linear import constant

SIZES = 3
"""Place of the sizes among the inputs of a Resize."""

BATCH_AND_CHANNELS = 2


def shape(node: ir.Node) -> Iterator[Link]:
    """Name the axes whose extents nobody takes from a Shape: they may change, bound to nothing."""
    source, out, known = node.inputs[0], node.outputs[0], rank(node.inputs[0])
    if source is None or known is None or out.is_graph_output():
        return
    end = node.attributes.get_int("end", known) if "end" in node.attributes else known
    told = list(range(known))[node.attributes.get_int("start", 0) : end]
    taken = {told[entry] for use in out.uses() for entry in _taken(use.node, use.idx, len(told), source)}
    for axis in set(range(known)) - taken:
        yield from one_to_one(Axis(source, axis), Axis(source, axis))


def _taken(node: ir.Node, place: int, count: int, source: ir.Value) -> Iterator[int]:
    """Yield the entries of a shape that a node takes."""
    picked = constant(node.inputs[1]) if node.op_type == "Gather" and place == 0 else None
    cuts = cuts_of(node) if node.op_type == "Slice" and place == 0 else None
    if picked is not None:
        yield from {int(entry) % count for entry in picked.reshape(-1)}
    elif cuts is not None:
        if not all(_is_returned(use.node, use.idx, source) for use in node.outputs[0].uses()):
            start, end, step = cuts[0]
            yield from list(range(count))[start:end:step]
    else:
        yield from range(count)


def _is_returned(concat: ir.Node, place: int, source: ir.Value) -> bool:
    """Whether the first extents of a value, behind a Slice, only become those of that value resized."""
    users = concat.outputs[0].uses()
    return (
        (concat.op_type, place) == ("Concat", 0)
        and leading(concat.outputs[0], source) > 0
        and all((use.node.op_type, use.idx, use.node.inputs[0]) == ("Resize", SIZES, source) for use in users)
    )


def resize(node: ir.Node) -> Iterator[Link]:
    """Link samples and channels, where they are not scaled."""
    source, out = node.inputs[0], node.outputs[0]
    sizes = node.inputs[SIZES] if len(node.inputs) > SIZES else None
    fixed = sizes is not None and constant(sizes) is not None and len(sizes.uses()) == 1
    own = sizes is None or fixed or (source is not None and leading(sizes, source) >= BATCH_AND_CHANNELS)
    region = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if source is None or not own or region or "axes" in node.attributes:
        return
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    for axis in (0, 1):
        if scales is None or not scales.size or scales.reshape(-1)[axis] == 1:
            yield from one_to_one(Axis(source, axis), Axis(out, axis))


def leading(sizes: ir.Value, source: ir.Value) -> int:
    """Count the first extents of a value that some sizes repeat, whatever they are while the model runs."""
    concat = sizes.producer()
    cut = (
        concat.inputs[0].producer() if concat is not None and concat.op_type == "Concat" and concat.inputs[0] else None
    )
    asked = cut.inputs[0].producer() if cut is not None and cut.op_type == "Slice" and cut.inputs[0] else None
    if cut is None or asked is None or asked.op_type != "Shape" or asked.inputs[0] is not source:
        return 0
    start, end, step = (cuts_of(cut) or {}).get(0, (1, 0, 1))
    plain = start == 0 and step == 1 and asked.attributes.get_int("start", 0) == 0 and not sizes.is_graph_output()
    return extent(Axis(cut.outputs[0], 0)) or max(end, 0) if plain else 0


def _behind(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return what makes the first input of a node, if that is of a kind."""
    first = node.inputs[0] if node is not None and node.op_type == op_type else None
    return None if first is None else first.producer()
