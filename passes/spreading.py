"""Questions of the placement to single nodes: what they compute, and whether codes pass through them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from ptq.passes.linear import constant, is_float32
from ptq.passes.stored import is_fused
from ptq.target import ARITHMETIC_OPS, MOVING


def lacks_kernel(node: ir.Node, op_types: Collection[str]) -> bool:
    """Whether a node has weights and no integer kernel: one of some operators, or a fused one."""
    weighted = node.op_type in op_types and not node.domain and constant(node.inputs[1]) is not None
    return weighted or is_fused(node)


def is_product(node: ir.Node) -> bool:
    """Whether a node is a MatMul of two activations."""
    return node.op_type == "MatMul" and all(constant(value) is None for value in node.inputs)


def two_activations(node: ir.Node) -> str | None:
    """Return why a product of two activations cannot run on integers; None if it can."""
    return None if all(is_float32(value) for value in node.inputs) else "its inputs are not float32"


def moves_only(node: ir.Node) -> bool:
    """Whether a data-moving node leaves values on their grid."""
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "Pad":
        value = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        return node.attributes.get_string("mode", "constant") != "constant" or (value is not None and not np.any(value))
    return True


def clipping_follower(value: ir.Value) -> ir.Node | None:
    """Return the only reader of a value, if it is a Relu or a Clip to an interval with 0 in it: its ends are codes."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node: ir.Node = next(iter(uses)).node
    if node.domain:
        return None
    if node.op_type == "Relu":
        return node
    if node.op_type == "Clip":
        low, high = (constant(end) for end in [*node.inputs[1:3], None, None][:2])
        given = [end for end in node.inputs[1:3] if end is not None]
        known = len(given) == sum(end is not None and end.size == 1 for end in (low, high))
        below = low is None or float(low.item()) <= 0.0
        return node if known and below and (high is None or float(high.item()) > 0.0) else None
    return None


def feeds_integers(value: ir.Value, needed: Mapping[str, ir.Value]) -> bool:
    """Whether codes of a value are read by a node that computes on them, possibly after moving data."""
    stack, visited = [value], set()
    while stack:
        current = stack.pop()
        if str(current.name) in visited:
            continue
        visited.add(str(current.name))
        if str(current.name) in needed:
            return True
        stack += [use.node.outputs[0] for use in current.uses() if use.node.op_type in MOVING | ARITHMETIC_OPS]
    return False
