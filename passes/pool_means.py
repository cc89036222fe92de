"""Means of images as pooling, which has an integer kernel."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ptq.passes.graph import fresh_value_name
from ptq.passes.linear import constant
from ptq.passes.rewire import stand_in
from ptq.target import LINEAR_OPS

SAME_AXES = frozenset({
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Add", "Mul", "Sub", "Div", "BatchNormalization", "MaxPool",
    "AveragePool", "Concat",
})  # fmt: skip
"""Operators whose result has as many axes as those of their inputs that are no constants."""


@dataclass(frozen=True)
class PoolMeans(ir.passes.InPlacePass):
    """Write the mean over all places of an image as GlobalAveragePool.

    Before: y = ReduceMean <axes = [2, 3], keepdims = 1> (x)
    After:  y = GlobalAveragePool(x); without keepdims, y = Flatten(GlobalAveragePool(x))
    Requires: the number of axes of x, known by its shape or by the convolution it comes from.
    Preserves float outputs: yes, within rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every mean over all axes but the first two."""
        means = [node for node in model.graph if node.op_type == "ReduceMean" and not node.domain]
        changed = [_rewrite(model.graph, node) for node in means]
        return ir.passes.PassResult(model, any(changed))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    x, axes = node.inputs[0], _axes(node)
    rank = None if x is None else num_axes(x)
    if x is None or not axes or rank is None or rank < 4:  # of texts with three axes it is a part of norms
        return False
    if sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return False
    pool = ir.node("GlobalAveragePool", [x], name=node.name)
    if node.attributes.get_int("keepdims", 1):
        stand_in(graph, node, pool)
        return True
    pool.outputs[0].name = fresh_value_name(graph, f"{node.outputs[0].name}_pooled")
    pool.outputs[0].type = node.outputs[0].type
    stand_in(graph, node, pool, ir.node("Flatten", [pool.outputs[0]]))
    return True


def _axes(node: ir.Node) -> list[int]:
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return list(node.attributes.get_ints("axes", ())) if given is None else [int(axis) for axis in given.reshape(-1)]


def num_axes(value: ir.Value | None) -> int | None:
    """Return how many axes a value has; None where neither its shape nor where it comes from says so."""
    known: dict[ir.Value, int | None] = {}
    stack = [] if value is None else [value]
    while stack:
        current = stack[-1]
        node = None if current.shape is not None else current.producer()
        sources = _sources(node)
        missing = [source for source in sources if source not in known]
        if missing:
            known[current] = None  # in case of a circle, which no graph has
            stack += missing
            continue
        known[current] = _axes_of(current, node, [known[source] for source in sources])
        stack.pop()
    return None if value is None else known[value]


def _sources(node: ir.Node | None) -> list[ir.Value]:
    """Return the inputs that decide how many axes a result has."""
    if node is None or node.domain or node.op_type not in SAME_AXES:
        return []
    return [value for value in node.inputs if value is not None and constant(value) is None]


def _axes_of(value: ir.Value, node: ir.Node | None, sources: list[int | None]) -> int | None:
    if node is None:
        return None if value.shape is None else len(value.shape)
    if "Conv" in node.op_type and node.op_type in LINEAR_OPS and not node.domain:
        weight = constant(node.inputs[1])
        return None if weight is None else weight.ndim
    most = max((array.ndim for each in node.inputs if (array := constant(each)) is not None), default=0)
    alike = len(set(sources)) == 1 and sources[0] is not None and most <= sources[0]
    return sources[0] if alike else None
