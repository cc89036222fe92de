"""Links of recurrent layers: the cells of an LSTM, a GRU or a plain RNN, in all gates and states."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ptq.passes.channels.links import Axis, Kept, Link, Read, Tie, extent, one_to_one
from ptq.passes.linear import constant

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RECURRENCE, BIAS, STATE, CELL, PEEPHOLES = 2, 3, 5, 6, 7
"""Places among the inputs."""

LAYING_OUT = frozenset({
    "Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


def recurrent(node: ir.Node) -> Iterator[Link]:
    """Link the cells in weights, biases and outputs; what feeds back has to be 0, as states begin with 0."""
    source, weight, back, out = *node.inputs[:3], node.outputs[0]
    if source is None or weight is None or back is None or constant(weight) is None or constant(back) is None:
        return
    if node.attributes.get_int("layout", 0) or "activation_alpha" in node.attributes:
        return
    yield Read(node, Axis(source, 2), Axis(weight, 2))
    states = [value for value in (_input(node, STATE), _input(node, CELL)) if value is not None]
    ends = [value for value in node.outputs[1:] if value.name]
    cells, gates = Axis(out, 3), GATES[node.op_type]
    if not out.name or (states and not all(_is_zero(value) for value in states)):
        return
    yield from _by_gate(cells, Axis(weight, 1), gates)
    yield from _by_gate(cells, Axis(back, 1), gates)
    for place, count in ((BIAS, 2 * gates), (PEEPHOLES, 3)):
        value = _input(node, place)
        if value is not None:
            yield from _by_gate(cells, Axis(value, 1), count)
    for value in ends:
        yield from one_to_one(cells, Axis(value, 2))
    yield from one_to_one(cells, Axis(back, 2))
    resets = node.op_type == "GRU" and node.attributes.get_int("linear_before_reset", 0) == 0
    yield Read(node, cells, Axis(back, 2), takes_constants=False, takes_multiples=not resets)  # each cell has its own


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if len(node.inputs) > place else None


def _is_zero(value: ir.Value) -> bool:
    """Whether a value is 0 all over, of whatever extents: a constant, or made of one while the model runs."""
    array, node = constant(value), value.producer()
    if array is not None:
        return not array.any()
    if node is None or node.domain:
        return False
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get_tensor("value", None)
        return filled is None or not filled.numpy().any()
    return node.op_type in LAYING_OUT and node.inputs[0] is not None and _is_zero(node.inputs[0])


def _by_gate(cells: Axis, rows: Axis, count: int) -> Iterator[Link]:
    """Tie each cell to its row in every gate: gate by gate, cells one after the other."""
    size = extent(cells)
    if size is not None and extent(rows) == size * count:
        yield Tie(cells, rows, (np.tile(np.arange(size), count), np.arange(size * count)))


def keep_cells(node: ir.Node, kept: Kept) -> None:
    """Write how many cells are left; they begin with 0 by themselves."""
    left = kept(Axis(node.outputs[0], 3)) if node.outputs[0].name else np.ones(1, np.bool_)
    if left.all():
        return
    if "hidden_size" in node.attributes:
        node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(left.sum()))
    for place in (STATE, CELL):
        if _input(node, place) is not None:
            node.replace_input_with(place, None)
