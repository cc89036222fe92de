"""Readers that are infinite at 0: a grid rounds small values to exactly that."""

from __future__ import annotations

import onnx_ir as ir

from ptq.passes.linear import constant
from ptq.target import MOVING

POLE_INPUTS = {"Log": 0, "Reciprocal": 0, "Div": 1, "Pow": 0}
"""Operator -> which of its inputs has a pole at 0: of Pow where the exponent is negative."""


def has_pole_behind(value: ir.Value) -> bool:
    """Return whether something infinite at 0 reads a value, right behind it or after data is moved."""
    stack, visited = [value], set[ir.Value]()
    while stack:
        current = stack.pop()
        if current in visited:
            continue
        visited.add(current)
        for use in current.uses():
            if not use.node.domain and use.idx == POLE_INPUTS.get(use.node.op_type) and _is_pole(use.node):
                return True
            if use.node.op_type in MOVING and use.idx == 0:
                stack.append(use.node.outputs[0])
    return False


def _is_pole(node: ir.Node) -> bool:
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return node.op_type != "Pow" or (exponent is not None and bool((exponent < 0).any()))
