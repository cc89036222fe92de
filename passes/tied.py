"""Search for tables that are tied: their rows are picked, and they are the weight of a product as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from ptq.core.layer import LinearLayer
from ptq.passes.linear import constant, describe_linear, is_float32, name_of


def tied_products(model: ir.Model, layers: Iterable[LinearLayer]) -> dict[str, str]:
    """Find the products whose weight is a table that Gather picks rows of, also as a transposed copy of it.

    Args:
        model: Prepared float model.
        layers: Layers whose weights lie on codes.

    Returns:
        Name of the table -> name of the product; a row of the table makes one output feature.
    """
    products = [layer for layer in layers if len(layer.layout.shape) == 2 and layer.weight_index == 1]
    found: dict[str, str] = {}
    for table in _tables(model):
        layer = next((layer for layer in products if _is_tied(model, layer, table)), None)
        if layer is not None:
            found[str(table.name)] = layer.name
    return found


def tied_names(model: ir.Model) -> frozenset[str]:
    """Return the names of all products that are tied to a table: what is scaled in one is scaled in the other."""
    nodes = [node for node in model.graph if node.op_type in ("MatMul", "Gemm") and not node.domain]
    layers = [layer for layer in map(describe_linear, nodes) if isinstance(layer, LinearLayer)]
    return frozenset(tied_products(model, layers).values())


def untied(model: ir.Model, excluded: Callable[[ir.Node], str | None]) -> Callable[[ir.Node], str | None]:
    """Return exclusions with the products that are tied to a table added, for transforms that scale weights."""
    tied = tied_names(model)
    return lambda node: excluded(node) or ("tied to a table" if name_of(node) in tied else None)


def kept_rows(tied: Mapping[str, str], table: ir.Value, reader: ir.Node) -> bool:
    """Whether a node is the product that a table is tied to, reading the table itself."""
    return tied.get(str(table.name)) == name_of(reader) and len(reader.inputs) > 1 and reader.inputs[1] is table


def _tables(model: ir.Model) -> list[ir.Value]:
    """Return the constants of two axes whose rows are picked."""
    picked = [node.inputs[0] for node in model.graph.all_nodes() if node.op_type == "Gather" and not node.domain]
    values = dict.fromkeys(value for value in picked if value is not None and is_float32(value))
    return [value for value in values if (array := constant(value)) is not None and array.ndim == 2]


def _is_tied(model: ir.Model, layer: LinearLayer, table: ir.Value) -> bool:
    """Whether the rows of a table are the output features of a layer."""
    if layer.weight == table.name:
        return layer.layout.out_axis == 0
    rows, weight = constant(table), constant(model.graph.initializers.get(layer.weight))
    if rows is None or weight is None:
        return False
    matrix = layer.layout.to_matrix(weight)
    same = matrix.shape == rows.shape and bool(np.array_equal(matrix[:1], rows[:1]))
    return same and bool(np.array_equal(matrix, rows))
