"""Bytes of a quantized model by what they are spent on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import onnx_ir as ir

from ptq.passes.decoding import constants
from ptq.passes.native_bodies import DOMAIN as NATIVE

Kind = Literal["codes", "scales", "biases", "float", "other"]
KINDS: tuple[Kind, ...] = ("codes", "scales", "biases", "float", "other")
GRIDS = frozenset({"QuantizeLinear", "DequantizeLinear"})
CODES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})


def bytes_by_kind(model: ir.Model, num_bytes: int) -> Mapping[Kind, int]:
    """Split a model's size by what its bytes hold.

    Args:
        model: Quantized model.
        num_bytes: Its size as delivered.

    Returns:
        Weight codes; scales, zero points and tables of levels; integer biases; float parameters; everything else, which
        is the graph.
    """
    sizes: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    fixed = constants(model.graph)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            is_table = any(_looks_up(use.node, value, fixed) for use in value.uses())
            sizes["scales" if is_table else _kind(value)] += value.const_value.nbytes
    sizes["other"] += num_bytes - sum(sizes.values())
    return sizes


def _kind(value: ir.Value) -> Kind:
    uses = list(value.uses())
    rank = 0 if value.shape is None else len(value.shape)
    if any(use.node.domain == NATIVE for use in uses):
        if value.dtype in CODES and rank > 1:
            return "codes"
        return "biases" if rank == 1 and value.dtype in (ir.DataType.FLOAT, ir.DataType.INT32) else "scales"
    if any(use.node.op_type in GRIDS and use.idx > 0 for use in uses) or any(_scales_codes(use.node) for use in uses):
        return "scales"
    if rank == 2 and any(use.node.op_type == "Gather" for use in uses):  # an embedding table
        return "codes" if value.dtype in CODES else "scales" if value.shape[1] == 1 else "float"  # type: ignore[index]
    decoded = any(use.node.op_type in {"DequantizeLinear", "Cast", "Slice", "Concat"} for use in uses)
    if value.dtype in CODES and (decoded or rank > 1):
        return "codes"
    if value.dtype == ir.DataType.INT32 and any(use.node.op_type == "DequantizeLinear" for use in uses):
        return "biases"
    return "float" if value.dtype == ir.DataType.FLOAT else "other"


def _looks_up(node: ir.Node, table: ir.Value, fixed: Collection[ir.Value]) -> bool:
    """Whether a node reads constant places of a constant table, as weights with few levels do."""
    rank = 0 if table.shape is None else len(table.shape)
    levels = table.dtype in (ir.DataType.FLOAT, ir.DataType.INT8) and rank == 1 and node.inputs[0] is table
    places = node.inputs[1] if node.op_type == "Gather" else None
    cast = places.producer() if places is not None and places in fixed else None
    return levels and cast is not None and cast.op_type == "Cast"


def _scales_codes(node: ir.Node) -> bool:
    """Whether a node multiplies widened codes, as weight-only layers do."""
    producers = [value.producer() for value in node.inputs if value is not None]
    return node.op_type == "Mul" and any(each is not None and each.op_type == "Cast" for each in producers)
