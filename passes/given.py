"""Integers that a model came with, as passes see them: grids of activations, and nodes that are on codes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ptq.core.affine import QuantParams
from ptq.core.spec import QuantSpec
from ptq.passes._qdq import decoder, quantizer
from ptq.passes.linear import constant
from ptq.passes.stored import tensor_of
from ptq.target import LINEAR_OPS

SOURCE_HASH = "ptq.float_sha256"
"""Key of a delivered file's metadata: hash of the float model that it was made from."""

PASSING = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
CODING = PASSING | {"QuantizeLinear", "DequantizeLinear", "Clip", "Cast"}
"""Operators that make weights of constants on their way to a layer."""


def comes_from_codes(value: ir.Value | None) -> bool:
    """Whether a value is decoded from constant codes, or from a constant that is rounded to codes."""
    while value is not None and (node := value.producer()) is not None and not node.domain:
        if node.op_type == "DequantizeLinear":
            return is_constant(node.inputs[0])
        value = node.inputs[0] if node.op_type in PASSING else None
    return False


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or computed from constants alone by the operators that make codes of them."""
    if value is None or tensor_of(value) is not None:
        return value is not None
    node = value.producer()
    if node is None or node.domain or node.op_type not in CODING:
        return False
    return all(each is None or is_constant(each) for each in node.inputs)


def given_grids(model: ir.Model) -> dict[str, QuantParams]:
    """Return the grids that activations of a model came with: values that are rounded, and decoded ones -> grid."""
    grids = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain or is_constant(node.inputs[0]):
            continue
        value = node.outputs[0] if node.op_type == "DequantizeLinear" else node.inputs[0]
        grid = _grid(node)
        if grid is not None and value is not None:
            grids[str(value.name)] = grid
    return grids


def _grid(node: ir.Node) -> QuantParams | None:
    """Return the grid of bytes that a node of a Q/DQ pair knows; None if it is of another kind."""
    scale, zero = (None if value is None else constant(value) for value in [*node.inputs[1:3], None][:2])
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or (has_zero and zero is None):
        return None
    zero = np.zeros((), np.uint8) if zero is None else zero.reshape(())
    if zero.dtype not in (np.uint8, np.int8):
        return None
    return QuantParams(scale.reshape(()), zero, QuantSpec(8, signed=zero.dtype == np.int8))


def rounding_of(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear by which a value came to be rounded; None if there is none."""
    nodes = [use.node for use in value.uses() if use.node.op_type == "QuantizeLinear" and use.idx == 0]
    return next((node for node in nodes if _grid(node) is not None), None)


def is_on_codes(node: ir.Node, grids: Mapping[str, QuantParams]) -> bool:
    """Whether a node came on integers: decoded values go in, and codes come out or a weight is decoded."""
    moving = [value for value in node.inputs if value is not None and not is_constant(value)]
    activations = [value for value in moving if not comes_from_codes(value) and decoder(value) is not None]
    on_grids = bool(activations) and all(str(value.name) in grids for value in activations)
    weighted = node.op_type in LINEAR_OPS and len(node.inputs) > 1 and comes_from_codes(node.inputs[1])
    whole = len(activations) == len([value for value in moving if not comes_from_codes(value)])
    return on_grids and whole and (weighted or quantizer(node) is not None)
