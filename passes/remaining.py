"""Search for float weights that no code stands for: whatever operator reads them, whatever its domain."""

from __future__ import annotations

from collections.abc import Callable, Container

import onnx_ir as ir

from ptq.passes.linear import name_of
from ptq.passes.stored import SMALLEST, tensor_of
from ptq.target import LINEAR_OPS

GATHER = "the table it picks from is small, or read in another way too"


def remaining_floats(
    model: ir.Model, coded: Container[str], excluded: Callable[[ir.Node], str | None]
) -> dict[str, str]:
    """Find nodes that read float weights of some size, of which none is on codes.

    Args:
        model: Prepared float model.
        coded: Names of the weights that lie on codes.
        excluded: The user's exclusions.

    Returns:
        Name of the node -> why its weight stays float.
    """
    found = {}
    for node in model.graph.all_nodes():
        inputs = [value for value in node.inputs if value is not None]
        weights = [value for value in inputs if _is_weight(value)]
        if weights and not any(str(value.name) in coded for value in inputs):
            largest = max(weights, key=_size)
            if max(map(_num_codes, inputs)) <= _size(largest):  # with more codes than floats, these are their scales
                found[name_of(node)] = excluded(node) or _reason(node, largest)
    return found


def _num_codes(value: ir.Value) -> int:
    tensor = tensor_of(value)
    return 0 if tensor is None or not tensor.dtype.is_integer() else tensor.size


def _is_weight(value: ir.Value) -> bool:
    """Whether a value is a float constant of some size with more than one axis: not a bias, nor a vector of scales."""
    tensor = tensor_of(value)
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < SMALLEST:
        return False
    return sum(extent > 1 for extent in tensor.shape.numpy()) > 1


def _size(value: ir.Value) -> int:
    tensor = tensor_of(value)
    return 0 if tensor is None else tensor.size


def _reason(node: ir.Node, weight: ir.Value) -> str:
    tensor = tensor_of(weight)
    shape = [] if tensor is None else [*tensor.shape.numpy()]
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if not node.domain and node.op_type == "Gather":
        return f"{GATHER}: {shape} float"
    if not node.domain and node.op_type in LINEAR_OPS:
        return f"its weight of {shape} is in no form that integer kernels know"
    return f"{operator} reads {shape} floats; no integer form of it is known"
