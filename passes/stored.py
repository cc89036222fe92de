"""Search for weights that shrink in the file and are decoded at load: of recurrent and fused layers, and in bodies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.matrix import WeightLayout
from ptq.passes.linear import name_of

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
GATES = (0, 1)
"""Axes of a recurrent layer's weights that are not summed over: directions, and features of gates."""

FUSED: Mapping[tuple[str, str], Mapping[int, tuple[int, ...]]] = {
    ("com.microsoft", "MoE"): {2: (0, 1), 4: (0, 1), 6: (0, 1)},
}
"""Operators of onnxruntime with weights inside: index of the input -> axes that have scales."""

SMALLEST = 256
"""Numbers in a weight that are worth two more operators."""

INSIDE = "inside If, Loop or Scan: its weight is on codes, its kernel float"


@dataclass(frozen=True)
class StoredWeight:
    """Constant that float kernels read.

    Attributes:
        name: Name of the value.
        shape: Shape of the value.
        axes: Axes along which every position has a scale of its own.
        is_recurrent: Whether a recurrent layer reads it, with a scale for every gate's feature of each direction.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    is_recurrent: bool = False

    @property
    def layout(self) -> WeightLayout:
        """Layout by which the matrix of its rows becomes the tensor, all axes that have scales taken as one."""
        if len(self.axes) == 1:
            return WeightLayout(self.axes[0], self.shape)
        return WeightLayout(0, (self.num_rows, *(n for axis, n in enumerate(self.shape) if axis not in self.axes)))

    def to_matrix(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrange a tensor as rows that share a scale. Shape [scales, weights under each]."""
        return np.moveaxis(array, self.axes, range(len(self.axes))).reshape(self.num_rows, -1)

    def to_tensor(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Arrange rows as the tensor, the inverse of `to_matrix`."""
        rest = [n for i, n in enumerate(self.shape) if i not in self.axes]
        tensor = matrix.reshape([self.shape[i] for i in self.axes] + rest)
        return np.ascontiguousarray(np.moveaxis(tensor, range(len(self.axes)), self.axes))

    def along(self, scale: NDArray[Any]) -> NDArray[Any]:
        """Reshape one scale per row so that it broadcasts against the tensor."""
        return scale.reshape([n if i in self.axes else 1 for i, n in enumerate(self.shape)])

    @property
    def num_rows(self) -> int:
        """Number of scales, one per row."""
        return int(np.prod([self.shape[i] for i in self.axes]))


def find_stored(model: ir.Model, excluded: Callable[[ir.Node], str | None]) -> tuple[StoredWeight, ...]:
    """Find weights of recurrent layers and fused operators, and of linear layers inside bodies of If, Loop and Scan.

    Args:
        model: Prepared float model.
        excluded: The user's exclusions.

    Returns:
        The weights, in the order in which they are read.
    """
    found: dict[str, StoredWeight] = {}
    for node in model.graph.all_nodes():
        for value, axes in _weights(node, inside=node.graph is not model.graph):
            tensor = tensor_of(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST or excluded(node):
                continue
            shape = tuple(tensor.shape.numpy())
            weight = StoredWeight(str(value.name), shape, axes, not node.domain and node.op_type in RECURRENT)
            if found.setdefault(weight.name, weight) != weight:
                del found[weight.name]  # two layers that want scales along different axes
    return tuple(found.values())


def inner_layers(model: ir.Model) -> Iterator[ir.Node]:
    """Find the linear layers with constant weights inside bodies."""
    for node in model.graph.all_nodes():
        if node.graph is not model.graph and node.op_type not in RECURRENT and any(_weights(node, inside=True)):
            yield node


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of a value that is a constant of any graph: an initializer, or made by a Constant node."""
    return ir.convenience.get_const_tensor(value)


def value_in(model: ir.Model, name: str) -> ir.Value:
    """Find the value of a name that a weight was found under.

    Raises:
        KeyError: There is none.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.name == name and tensor_of(value) is not None:
                return value
    raise KeyError(name)


def weights_inside(node: ir.Node) -> Iterator[tuple[ir.Value, tuple[int, ...]]]:
    """Find the weights of a recurrent layer or a fused operator, constant or not, with the axes that have scales."""
    axes = FUSED.get((node.domain, node.op_type), {})
    if not node.domain and node.op_type in RECURRENT:
        axes = {1: GATES, 2: GATES}
    for index, value in enumerate(node.inputs):
        if index in axes and value is not None:
            yield value, axes[index]


def _weights(node: ir.Node, *, inside: bool) -> Iterator[tuple[ir.Value, tuple[int, ...]]]:
    """Find the inputs of a node that are weights, with the axes that have scales."""
    yield from weights_inside(node)
    if node.domain:
        return
    if inside and node.op_type in ("Conv", "Gemm", "MatMul") and len(node.inputs) > 1:
        value = node.inputs[1]
        turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        first = node.op_type == "Conv" or turned
        tensor = None if value is None else tensor_of(value)
        if value is not None and tensor is not None and (first or len(tensor.shape) == 2):
            yield value, (0,) if first else (1,)


def describe(model: ir.Model, weights: tuple[StoredWeight, ...], num_bits: int, on_integers: Collection[str]) -> str:
    """Describe stored weights in one line for the report."""
    names = {weight.name for weight in weights}
    readers = [
        node
        for node in model.graph.all_nodes()
        if any(value is not None and value.name in names for value in node.inputs)
    ]
    told = f"{len(weights)} weights on {num_bits} bits"
    for how, integer in (("multiplied as integers", True), ("decoded when the session opens", False)):
        own = [f"{node.op_type} {name_of(node)}" for node in readers if (name_of(node) in on_integers) == integer]
        told += f", {how}: {', '.join(own)}" if own else ""
    return told
