"""Constants of a graph, written and read, and names that are still free."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add a constant to a graph; the name must not be taken."""
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def fresh_name(graph: ir.Graph, name: str) -> str:
    """Return the name, or with a number behind it, so that no constant has it yet."""
    candidate, count = name, 1
    while candidate in graph.initializers:
        candidate, count = f"{name}_{count}", count + 1
    return candidate


def fresh_value_name(graph: ir.Graph, name: str) -> str:
    """Return the name, or with a number behind it, so that no constant, input or result of a node has it yet."""
    taken = {value.name for value in (*graph.inputs, *(out for node in graph for out in node.outputs))}
    candidate, count = fresh_name(graph, name), 1
    while candidate in taken:
        candidate, count = fresh_name(graph, f"{name}_{count}"), count + 1
    return candidate


def initializer_of(model: ir.Model, name: str) -> NDArray[Any]:
    """Return the numbers of a constant.

    Raises:
        KeyError: There is no such constant.
        RuntimeError: Its numbers are gone.
    """
    tensor = model.graph.initializers[name].const_value
    if tensor is None:
        raise RuntimeError(f"initializer {name} lost its values")
    array: NDArray[Any] = tensor.numpy()
    return array
