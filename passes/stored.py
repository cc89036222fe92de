"""Search for weights that shrink in the file and are decoded at load: of recurrent layers and other float kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.matrix import WeightLayout
from ptq.passes.linear import name_of
from ptq.target import LINEAR_OPS

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
GATES = (0, 1)
"""Axes of a recurrent layer's weights that are not summed over: directions, and features of gates."""

FUSED: Mapping[tuple[str, str], Mapping[int, tuple[int, ...]]] = {
    ("com.microsoft", "MoE"): {2: (0, 1), 4: (0, 1), 6: (0, 1)},
}
"""Operators of onnxruntime with weights inside: index of the input -> axes that have scales."""

SMALLEST = 256
"""Numbers in a weight that are worth two more operators."""

MOST_NAMED = 6
"""Readers that a note names; the card has all."""

INSIDE = "inside If, Loop or Scan: its weight is on codes, its kernel float"


Role = Literal["recurrent", "inside", "float"]


@dataclass(frozen=True)
class StoredWeight:
    """Constant that float kernels read.

    Attributes:
        name: Name of the value.
        shape: Shape of the value.
        axes: Axes along which every position has a scale of its own.
        role: What reads the weight: a recurrent layer, a layer inside a body or a fused operator, or any other layer.
        reader: Name of the first node that does.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    role: Role = "recurrent"
    reader: str = ""

    @property
    def layout(self) -> WeightLayout:
        """Layout by which the matrix of its rows becomes the tensor, all axes that have scales taken as one."""
        if len(self.axes) == 1:
            return WeightLayout(self.axes[0], self.shape)
        return WeightLayout(0, (self.num_rows, *(n for axis, n in enumerate(self.shape) if axis not in self.axes)))

    @property
    def order(self) -> tuple[int, ...]:
        """Axes of the tensor in the order in which `layout` leaves them."""
        axes = tuple(range(len(self.shape)))
        return axes if len(self.axes) == 1 else (*self.axes, *(axis for axis in axes if axis not in self.axes))

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
    def is_recurrent(self) -> bool:
        """Whether a recurrent layer reads the weight, with a scale for every gate's feature of each direction."""
        return self.role == "recurrent"

    @property
    def num_rows(self) -> int:
        """Number of scales, one per row."""
        return int(np.prod([self.shape[i] for i in self.axes]))


def find_stored(
    model: ir.Model, excluded: Callable[[ir.Node], str | None], floats: Collection[str] = ()
) -> tuple[StoredWeight, ...]:
    """Find weights that float kernels read: of recurrent layers and experts, of layers inside bodies, and of others.

    Args:
        model: Prepared float model.
        excluded: The user's exclusions, whose weights stay float.
        floats: Layers of the main graph that keep float kernels.

    Returns:
        The weights, in the order in which they are read.
    """
    found, kept = dict[str, StoredWeight](), set[str]()
    for node in model.graph.all_nodes():
        role = role_of(node, model.graph, floats)
        if role is None:
            continue
        for value, axes in _weights(node):
            tensor = tensor_of(value)
            if excluded(node):
                kept.add(str(value.name))
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST or excluded(node):
                continue
            weight = StoredWeight(str(value.name), tuple(tensor.shape.numpy()), axes, role, name_of(node))
            if found.setdefault(weight.name, weight).axes != axes:
                kept.add(weight.name)  # two layers that want scales along different axes
    return tuple(weight for name, weight in found.items() if name not in kept)


def float_kernels(model: ir.Model, floats: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the layers among those on float kernels that read weights -> names of the weights."""
    nodes = [node for node in model.graph if name_of(node) in floats]
    return {name_of(node): names for node in nodes if (names := tuple(str(v.name) for v, _ in _weights(node)))}


def role_of(node: ir.Node, graph: ir.Graph, floats: Collection[str]) -> Role | None:
    """Return in which role a node would read a weight on codes; None if it does not."""
    if node.op_type in RECURRENT and not node.domain:
        return "recurrent"
    if node.graph is not graph or is_fused(node):
        return "inside"
    return "float" if name_of(node) in floats else None


def is_fused(node: ir.Node) -> bool:
    """Whether a node is an operator of onnxruntime with weights inside."""
    return (node.domain, node.op_type) in FUSED


def inner_layers(model: ir.Model) -> Iterator[ir.Node]:
    """Find the linear layers with constant weights inside bodies."""
    for node in model.graph.all_nodes():
        if node.graph is not model.graph and node.op_type not in RECURRENT and any(_weights(node)):
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


def _weights(node: ir.Node) -> Iterator[tuple[ir.Value, tuple[int, ...]]]:
    """Find the inputs of a node that are weights, with the axes that have scales."""
    yield from weights_inside(node)
    if node.op_type in LINEAR_OPS and not node.domain:
        order = (1, 0) if node.op_type == "MatMul" else (1,)
        for index in order:
            value = node.inputs[index] if index < len(node.inputs) else None
            tensor = None if value is None else tensor_of(value)
            if value is not None and tensor is not None and len(tensor.shape) > 1:
                yield value, scaled_axes(node, index, len(tensor.shape))
                return


def scaled_axes(node: ir.Node, index: int, rank: int) -> tuple[int, ...]:
    """Return the axes of a layer's weight that its products are not summed over.

    Args:
        node: The layer.
        index: Which input the weight is.
        rank: Number of axes of the weight.
    """
    summed = _summed(node, index, rank)
    return tuple(axis for axis in range(rank) if axis not in summed)


def _summed(node: ir.Node, index: int, rank: int) -> tuple[int, ...]:
    if node.op_type == "Conv":
        return tuple(range(1, rank))
    if node.op_type == "ConvTranspose":
        return (0, *range(2, rank))
    if node.op_type == "Gemm":
        return (0,) if not node.attributes.get_int("transB", 0) else (1,)
    return (rank - 2,) if index == 1 else (rank - 1,)


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
        more = f" and {len(own) - MOST_NAMED} more" if len(own) > MOST_NAMED else ""
        told += f", {how}: {', '.join(own[:MOST_NAMED])}{more}" if own else ""
    return told
