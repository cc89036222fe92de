"""Order of axes: what operators need to be told to do the same on values whose axes have another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant

Order = tuple[int, ...]
"""For each axis of a result, the axis of the source that it is: `perm` of Transpose."""

ALONE = frozenset({
    "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log",
    "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that look at each number of their first input by itself; their other inputs are single numbers."""

TOGETHER = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sum", "Mean", "PRelu"})
"""Operators that look at the numbers of all their inputs at one place; constants may have fewer axes."""

ALONG = frozenset({"Concat", "Softmax", "LogSoftmax"})
"""Operators with an attribute `axis`."""

OVER = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"})
"""Operators with `axes`, an attribute or a constant, that may drop them; so does Squeeze."""


def inverse(order: Order) -> Order:
    """Return the order that leads back."""
    return tuple(int(axis) for axis in np.argsort(order))


def order_of(node: ir.Node | None) -> Order | None:
    """Return the order that a Transpose makes; None for other nodes, and where the number of axes is not said."""
    if node is None or node.op_type != "Transpose" or node.domain or "perm" not in node.attributes:
        return None
    return tuple(node.attributes.get_ints("perm"))


def axes_of(node: ir.Node) -> list[int] | None:
    """Return the axes that a node names as an attribute or a constant; None where it names none, or computes them."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None:
        numbers = constant(given)
        return None if numbers is None else [int(axis) for axis in numbers.reshape(-1)]
    named = node.attributes.get_ints("axes")
    return None if named is None else list(named)


def moving(node: ir.Node) -> tuple[ir.Value, ...] | None:
    """Return the inputs of a node whose axes may have another order, all of them the same one; None if none may."""
    known = node.op_type in ALONE | TOGETHER | ALONG | OVER | {"Pad", "Squeeze"}
    if node.domain or not known or len(node.outputs) != 1:
        return None
    given = [value for value in node.inputs if value is not None]
    if node.op_type in TOGETHER | {"Concat"}:
        return tuple(value for value in given if constant(value) is None)
    rest = given[1:]
    if node.op_type in ALONE:
        usable = all((array := constant(value)) is not None and array.size == 1 for value in rest)
    elif node.op_type == "Pad":
        usable = len(node.inputs) in (2, 3) and constant(node.inputs[1]) is not None
    elif node.op_type in ALONG:
        usable = True
    else:
        usable = axes_of(node) is not None
    return tuple(given[:1]) if usable and given and constant(given[0]) is None else None


def dropped(node: ir.Node) -> list[int] | None:
    """Return the axes that the result of a node is without; None if it has as many as its input."""
    if node.op_type == "Squeeze" or (node.op_type in OVER and not node.attributes.get_int("keepdims", 1)):
        return axes_of(node)
    return None


def reorder(graph: ir.Graph, node: ir.Node, order: Order) -> None:
    """Make a node, whose moving inputs are of another order by now, do what it did.

    Args:
        graph: Graph of the node.
        node: As `moving` takes it; changed in place.
        order: For each axis of the new inputs, the axis that it was.
    """
    back = inverse(order)
    if node.op_type in TOGETHER | {"Concat"}:
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is not None and (array.size > 1 or node.op_type == "Concat"):
                whole = array.reshape((1,) * (len(order) - array.ndim) + array.shape)
                _replace(graph, node, index, whole.transpose(order))
    if node.op_type in ALONG:
        axis = node.attributes.get_int("axis", -1)
        node.attributes["axis"] = ir.AttrInt64("axis", back[axis])
    if node.op_type == "Pad":
        pads = constant(node.inputs[1])
        assert pads is not None  # as `moving` found
        _replace(graph, node, 1, pads.reshape(2, len(order))[:, order].reshape(-1))
    if node.op_type in OVER | {"Squeeze"}:
        axes = sorted(back[axis] for axis in axes_of(node) or ())
        if len(node.inputs) > 1:
            _replace(graph, node, 1, np.array(axes, np.int64))
        else:
            node.attributes["axes"] = ir.AttrInt64s("axes", axes)


def reordered(shape: ir.Shape | None, order: Sequence[int]) -> ir.Shape | None:
    """Return a shape with its axes in another order; None where it is unknown, or declared with other axes."""
    return None if shape is None or len(shape) != len(order) else ir.Shape([shape[axis] for axis in order])


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[Any]) -> None:
    name = fresh_name(graph, f"{node.outputs[0].name}_reordered_{index}")
    node.replace_input_with(index, add_initializer(graph, name, np.ascontiguousarray(array)))
