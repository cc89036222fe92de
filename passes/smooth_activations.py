"""Smoothing: part of each channel's width moves from an activation into the weights that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant, name_of

NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True)
class SmoothActivations(ir.passes.InPlacePass):
    """Divide the channels of activations, multiply the weights of the products that read them.

    Before: y = MatMul(x, W)
    After:  y = MatMul(Mul(x, 1 / s), s W); where x comes out of a normalization that nothing else reads, its scale and
        bias are divided instead
    Requires: products with constant weights of two axes on the right.
    Ensures: other readers of x see it unchanged.
    Preserves float outputs: yes, within rounding.

    Attributes:
        scales: Value -> what each channel (last axis) is divided by.
        layers: Value -> the products that read it, by name.
    """

    scales: Mapping[str, Float]
    layers: Mapping[str, tuple[str, ...]]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Smooth every value that is named."""
        nodes = {name_of(node): node for node in model.graph}
        for value, scale in self.scales.items():
            readers = [nodes[name] for name in self.layers[value]]
            source = readers[0].inputs[0]
            if source is None:
                raise RuntimeError(f"{name_of(readers[0])} has no input")
            if normalization_for(source, readers) is None:
                divided = _divided(model.graph, source, scale)
                for node in readers:
                    node.replace_input_with(0, divided)
            else:
                _divide_normalization(model.graph, source, scale)
            for node in readers:
                multiply_weight(model.graph, node, scale[:, None])
        return ir.passes.PassResult(model, bool(self.scales))


def normalization_for(source: ir.Value, readers: list[ir.Node]) -> ir.Node | None:
    """Return the normalization that a scale can be folded into, as only these nodes read it; None if there is none.

    A product with a constant is as good: with one per channel a root-mean-square normalization ends.
    """
    node = source.producer()
    if node is None or node.domain or source.is_graph_output() or {use.node for use in source.uses()} - set(readers):
        return None
    if node.op_type == "Mul":
        return node if len(_factors(node)) == 1 else None
    if node.op_type not in NORMALIZATIONS or node.attributes.get_int("axis", -1) != -1:
        return None
    return node if len(_factors(node)) == sum(value is not None for value in node.inputs[1:]) else None


def _factors(node: ir.Node) -> list[int]:
    """Return the indices of inputs that are constants and are divided with what the node makes."""
    start = 0 if node.op_type == "Mul" else 1
    return [index for index, value in enumerate(node.inputs) if index >= start and constant(value) is not None]


def multiply_weight(graph: ir.Graph, node: ir.Node, factor: Float) -> None:
    """Give a product a weight of its own, multiplied; `factor` broadcasts over [in, out]."""
    weight = constant(node.inputs[1])
    if weight is None:
        raise RuntimeError(f"{name_of(node)} has no constant weight")
    scaled = (weight.astype(np.float64) * factor).astype(np.float32)
    node.replace_input_with(1, add_initializer(graph, fresh_name(graph, f"{name_of(node)}_smooth_weight"), scaled))


def _divided(graph: ir.Graph, source: ir.Value, scale: Float) -> ir.Value:
    inverse = add_initializer(graph, fresh_name(graph, f"{source.name}_smoothing"), (1 / scale).astype(np.float32))
    node = ir.node("Mul", [source, inverse])
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{source.name}_smooth", source.type, source.shape
    producer = source.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return result


def _divide_normalization(graph: ir.Graph, source: ir.Value, scale: Float) -> None:
    node = source.producer()
    if node is None:
        raise RuntimeError(f"{source.name} has no producer")
    for index in _factors(node):
        name = fresh_name(graph, f"{source.name}_smooth_{'bias' if index == 2 else 'scale'}")
        divided = (np.asarray(constant(node.inputs[index])) / scale).astype(np.float32)
        node.replace_input_with(index, add_initializer(graph, name, divided))
