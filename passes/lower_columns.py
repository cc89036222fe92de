"""Lowering of tables whose product has scales per block: rows are picked of the codes that its kernel reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ptq.passes._guards import take_over
from ptq.passes.linear import name_of
from ptq.passes.lower_weight import WeightWriter
from ptq.passes.tables import Table

INT8, FLOAT, INT64 = ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.INT64


def lower_columns(
    weights: WeightWriter, table: Table, readers: Sequence[ir.Node], parts: Sequence[ir.Value]
) -> dict[str, ir.Value]:
    """Pick rows of a table out of the weight of its product, whose columns they are.

    Before: y = Gather(table, i)
    After:  y = Reshape(Mul(Sub(Cast(Gather(codes, i)), Cast(Gather(zeros, i))), Gather(scales, i))), codes, zeros and
            scales turned and cut into blocks when the session opens; centered blocks have no zeros

    Args:
        weights: Writer into the graph.
        table: Table that is lowered.
        readers: Nodes that pick its rows, each in whatever graph it is.
        parts: Codes, scales and zero points, if any, of the product. Shapes [columns, rows], [blocks, rows].

    Returns:
        Name of each reader -> value that stands for its result.
    """
    rows, columns = table.shape
    num_blocks = int(parts[1].const_value.shape.numpy()[0])  # type: ignore[union-attr]
    size = columns // num_blocks
    turned = [_turned(weights, table, parts[0], (rows, num_blocks, size))]
    turned += [_turned(weights, table, part, (rows, num_blocks, 1)) for part in parts[1:]]
    return {name: _pick(weights, name, node, turned) for node in readers if (name := name_of(node))}


def _turned(weights: WeightWriter, table: Table, part: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Arrange a constant by rows of the table."""
    writer, made = weights.writer, []
    kind = FLOAT if part.dtype == FLOAT else INT8
    if part.dtype not in (FLOAT, INT8):  # no kernel moves shorter words
        part = writer.node("Cast", [part], f"{part.name}_wide", (INT8, part.shape), {"to": int(INT8)})
        made.append(part)
    by_row = writer.node("Transpose", [part], f"{part.name}_rows", (kind, None), {"perm": (1, 0)})
    extents = writer.initializer(f"{table.name}_extents", np.array(shape, np.int64))
    cut = writer.node("Reshape", [by_row, extents], f"{part.name}_blocks", (kind, ir.Shape(shape)))
    writer.compute_first(*made, by_row, cut)
    return cut


def _pick(weights: WeightWriter, name: str, node: ir.Node, parts: Sequence[ir.Value]) -> ir.Value:
    """Replace one reader of a table."""
    writer, index, shape, graph = weights.writer, node.inputs[1], node.outputs[0].shape, node.graph
    assert graph is not None  # a reader of the graph that is lowered
    made: list[ir.Value] = []

    def add(op_type: str, inputs: Sequence[ir.Value | None], role: str, **attributes: int) -> ir.Value:
        made.append(writer.node(op_type, inputs, f"{name}_{role}", (None, None), attributes))
        return made[-1]

    codes = add("Cast", [add("Gather", [parts[0], index], "codes")], "wide", to=int(FLOAT))
    steps = add("Gather", [parts[1], index], "step")
    if len(parts) > 2:
        zeros = add("Cast", [add("Gather", [parts[2], index], "zeros")], "zero", to=int(FLOAT))
        codes = add("Sub", [codes, zeros], "centered")
    blocks = add("Mul", [codes, steps], "blocks")
    rest = writer.initializer(f"{name}_rest", np.array([-1], np.int64))
    extents = add("Concat", [add("Shape", [index], "places"), rest], "extents", axis=0)
    row = add("Reshape", [blocks, extents], "row")
    row.dtype, row.shape = FLOAT, shape
    nodes = [each for value in made if (each := value.producer()) is not None]
    graph.insert_before(node, nodes)
    take_over(node.outputs[0], row)
    writer.first = nodes[0] if writer.first is node else writer.first
    graph.remove(node, safe=True)
    return row
