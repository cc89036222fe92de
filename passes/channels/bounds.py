"""Bounds of channels for any input: what the weights allow, from the bounds that activations set.

Intervals, operator by operator. A channel whose interval is a point is proved to be constant: its weights are zero, or
its function is flat over all that can reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.passes.channels.layer_links import is_padded
from ptq.passes.channels.links import Axis, Mask, extent, rank
from ptq.passes.gates import ramp_of
from ptq.passes.linear import constant

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze"})
KEEPS = frozenset({"Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool"})
"""Operators whose results lie within what they read."""

WITHIN = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Functions whose results lie within fixed bounds."""


@dataclass(frozen=True)
class Bounds:
    """Interval of every channel of a value.

    Attributes:
        low: Lowest value. Shape [channels], or [1] for all alike.
        high: Highest value, likewise.
        axis: Where the channels are.
    """

    low: Float
    high: Float
    axis: int = 1

    def through(self, function: Callable[[Float], Float]) -> Bounds:
        """Return the bounds behind a function that never falls."""
        return replace(self, low=function(self.low), high=function(self.high))

    def with_zero(self) -> Bounds:
        """Return the bounds where zeros lie beside."""
        return replace(self, low=np.minimum(self.low, 0.0), high=np.maximum(self.high, 0.0))

    @property
    def is_point(self) -> Mask:
        """Whether a channel is constant. Shape as `low`."""
        return np.asarray(np.isfinite(self.low) & (self.low == self.high))


ANYTHING = Bounds(np.array([-np.inf]), np.array([np.inf]))


def proved(axes: Iterable[Axis], graph: ir.Graph) -> dict[Axis, Bounds]:
    """Return what is proved of the channels along some axes.

    Args:
        axes: The axes; those of which nothing is proved are left out.
        graph: The graph, in dataflow order.
    """
    known = dict[ir.Value, Bounds]()
    for node in graph:
        if len(node.outputs) == 1 and not node.domain:
            known[node.outputs[0]] = _behind(node, known)
    found = {axis: known.get(axis.value, ANYTHING) for axis in axes}
    return {
        axis: bounds
        for axis, bounds in found.items()
        if bounds.axis == axis.axis and len(bounds.low) == extent(axis) and bounds.is_point.any()
    }


def _behind(node: ir.Node, known: Mapping[ir.Value, Bounds]) -> Bounds:
    """Return bounds of a node's result."""
    source, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    before = ANYTHING if source is None else known.get(source, ANYTHING)
    ramp = ramp_of(node)
    if ramp is not None:
        return before.through(lambda values: np.clip(ramp.alpha * values + ramp.beta, 0.0, 1.0))
    if node.op_type in LAYERS:
        return _layer(node, before)
    if node.op_type == "Add":
        return _sum(node, known)
    if node.op_type in RESHAPES:
        same = source is not None and extent(Axis(source, before.axis)) == extent(Axis(out, before.axis))
        return before if same and _is_flat(source, before.axis) else ANYTHING
    if node.op_type in KEEPS:
        return before
    return _activation(node, before)


def _activation(node: ir.Node, before: Bounds) -> Bounds:
    """Return bounds behind a function of single numbers, or a mean of neighbors."""
    if node.op_type in WITHIN:
        low, high = WITHIN[node.op_type]
        return Bounds(np.array([low]), np.array([high]))
    if node.op_type == "AveragePool":
        return before.with_zero() if is_padded(node) else before
    if node.op_type == "Relu":
        return before.through(lambda values: np.maximum(values, 0.0))
    if node.op_type != "Clip":
        return ANYTHING
    low, high = _number(node, 1, -np.inf), _number(node, 2, np.inf)
    return before.through(lambda values: np.clip(values, low, high))


def _is_flat(value: ir.Value | None, axis: int) -> bool:
    """Whether a value has nothing but samples and channels: its other extents are 1."""
    return value is not None and all(extent(Axis(value, each)) == 1 for each in range(axis + 1, rank(value) or 0))


def _layer(node: ir.Node, before: Bounds) -> Bounds:
    """Return bounds of a layer with a constant weight: each product at whichever end makes the sum least or most."""
    weight, out = constant(node.inputs[1]), node.outputs[0]
    plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
    if weight is None or weight.dtype != np.float32 or weight.ndim < 2 or not plain or rank(out) is None:
        return ANYTHING
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    offset = np.zeros(1) if bias is None else constant(bias)
    if offset is None or node.attributes.get_int("transA", 0) == 1:
        return ANYTHING
    rows = weight.astype(np.float64)
    groups, axis = 1, 1
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        before = before.with_zero() if is_padded(node) else before
    else:
        axis = (rank(out) or 1) - 1
        rows = rows if node.attributes.get_int("transB", 0) == 1 else np.moveaxis(rows, -1, 0)
    rows = rows.reshape(len(rows), rows.shape[1], -1)
    low, high = (_per_input(end, before, len(rows), rows.shape[1], groups) for end in (before.low, before.high))
    with np.errstate(invalid="ignore"):
        ends = [np.where(rows > 0, rows * one, np.where(rows < 0, rows * other, 0.0)).sum((1, 2))
                for one, other in ((low, high), (high, low))]  # fmt: skip
    return Bounds(ends[0] + offset.reshape(-1), ends[1] + offset.reshape(-1), axis)


def _per_input(end: Float, before: Bounds, features: int, inputs: int, groups: int) -> Float:
    """Arrange one end of the input's interval as the weight is. Shape [features, inputs, 1], or [1, 1, 1]."""
    if len(before.low) != inputs * groups:
        worst = end.min() if end is before.low else end.max()
        return np.full((1, 1, 1), worst)
    return np.repeat(end.reshape(groups, inputs), features // groups, 0)[:, :, None]


def _sum(node: ir.Node, known: Mapping[ir.Value, Bounds]) -> Bounds:
    """Return bounds of a sum of two, one of which may be a vector over the last axis."""
    parts = []
    for value in node.inputs:
        array = constant(value)
        if array is None:
            parts.append(ANYTHING if value is None else known.get(value, ANYTHING))
        elif array.ndim <= 1:
            flat = array.reshape(-1).astype(np.float64)
            parts.append(Bounds(flat, flat, (rank(node.outputs[0]) or 1) - 1))
        else:
            return ANYTHING
    first, second = parts
    if len(first.low) > 1 and len(second.low) > 1 and first.axis != second.axis:
        return ANYTHING
    axis = first.axis if len(first.low) > 1 else second.axis
    return Bounds(first.low + second.low, first.high + second.high, axis)


def _number(node: ir.Node, place: int, default: float) -> float:
    """Return a scalar input; the default where there is none or it is computed."""
    array = constant(node.inputs[place]) if len(node.inputs) > place else None
    known = array is not None and array.size == 1 and array.dtype.kind in "fiu"
    return float(array.reshape(-1)[0]) if known and array is not None else default
