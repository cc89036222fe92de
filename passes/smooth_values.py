"""Scales per channel that pass through an attention, which averages values, or a gate, which multiplies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import bias_add, constant, name_of
from ptq.passes.smooth_activations import multiply_weight


@dataclass(frozen=True)
class SmoothValues(ir.passes.InPlacePass):
    """Move scales from the product that makes the values of an attention, or of a gate, into the one behind it.

    Before: MatMul(A MatMul(x, V), O)
    After:  MatMul(A MatMul(x, V / s), s O); likewise MatMul(Mul(gate, MatMul(x, U / s)), s D)
    Requires: pairs from `value_projections` and `gated_projections`.
    Preserves float outputs: yes, within rounding, if heads are put together in the order in which they were taken
        apart; the graph does not say so in one place, so run it and compare.

    Attributes:
        scales: Product behind the attention or the gate -> what each channel of its values is divided by.
    """

    scales: Mapping[str, Float]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move every scale that is named."""
        pairs = value_projections(model) | gated_projections(model)
        nodes = {name_of(node): node for node in model.graph}
        for name, scale in self.scales.items():
            values = nodes[pairs[name]]
            multiply_weight(model.graph, values, 1 / scale)
            _multiply_bias(model.graph, values, 1 / scale)
            multiply_weight(model.graph, nodes[name], scale[:, None])
        return ir.passes.PassResult(model, bool(self.scales))


def value_projections(model: ir.Model) -> dict[str, str]:
    """Map products behind an attention to the product that makes its values, where nothing else reads those.

    Between the two stand a product of two activations and nodes that only move data.
    """
    makers = {}
    for node in model.graph:
        if not _is_weighted(node):
            continue
        mixed = _behind_moves(node.inputs[0])
        if mixed is None or not _is_mixing(mixed):
            continue
        values = _without_bias(_behind_moves(mixed.inputs[1]))
        if values is not None and _is_weighted(values) and _width(values, 1) == _width(node, 0):
            makers[name_of(node)] = name_of(values)
    return makers


def gated_projections(model: ir.Model) -> dict[str, str]:
    """Map products behind a gate to the product whose output the gate multiplies, as in SwiGLU.

    Of two products of a bilinear layer it is the first.
    """
    makers: dict[str, str] = {}
    for node in model.graph:
        gated = _producer(node.inputs[0]) if _is_weighted(node) else None
        if gated is None or gated.op_type != "Mul" or gated.domain or not _only_reader(node.inputs[0]):
            continue
        for value in gated.inputs:
            made = _without_bias(_producer(value)) if _only_reader(value) else None
            if made is not None and _is_weighted(made) and _width(made, 1) == _width(node, 0):
                makers.setdefault(name_of(node), name_of(made))
    return makers


def _without_bias(node: ir.Node | None) -> ir.Node | None:
    """Return the product in front of an Add, or the node itself if it is no Add."""
    if node is None or node.op_type not in ("Add", "Sum"):
        return node
    return next((each for each in map(_producer, node.inputs) if each and bias_add(each) is node), None)


def _only_reader(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _behind_moves(value: ir.Value | None) -> ir.Node | None:
    """Return the node that a value comes from, through nodes that only move its data and have no other reader."""
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.domain or node.op_type not in ("Reshape", "Transpose"):
            return node
        value = node.inputs[0]
    return None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _is_weighted(node: ir.Node) -> bool:
    weight = constant(node.inputs[1]) if node.op_type == "MatMul" and not node.domain else None
    return weight is not None and weight.ndim == 2 and weight.dtype == np.float32


def _is_mixing(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not node.domain and all(constant(value) is None for value in node.inputs)


def _width(node: ir.Node, axis: int) -> int:
    weight = constant(node.inputs[1])
    return 0 if weight is None else int(weight.shape[axis])


def _multiply_bias(graph: ir.Graph, node: ir.Node, factor: Float) -> None:
    add = bias_add(node)
    for index, value in enumerate(add.inputs if add is not None else ()):
        bias = constant(value)
        if add is not None and bias is not None:
            name = fresh_name(graph, f"{name_of(node)}_smooth_bias")
            add.replace_input_with(index, add_initializer(graph, name, (bias * factor).astype(np.float32)))
