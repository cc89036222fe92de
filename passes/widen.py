"""Widening of models in float16, bfloat16 or double to float32, which the integer kernels start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.graph import fresh_value_name
from ptq.passes.linear import constant
from ptq.target import LINEAR_OPS

OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
TYPED = ("to", "dtype", "output_dtype")
"""Attributes that name an element type."""

KNOWN_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
SAME_AS_HALF = 3e-2
"""Share of the largest output that rounding every value inside to eleven bits may have cost the model that came."""


@dataclass(frozen=True)
class WidenFloats(ir.passes.InPlacePass):
    """Compute in float32 whatever was computed in other floats, where a linear layer is.

    Before: y: float16 = Conv(x: float16, W: float16)
    After:  y = Cast[float16](Conv(Cast[float32](x), float32 W))
    Requires: standard operators, no local functions, types of values known.
    Ensures: inputs and outputs keep their names and types.
    Preserves float outputs: within the rounding of the narrower type.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Widen the whole graph, or leave it as it is if no layer needs it or some number would not fit."""
        graphs = list(_graphs(model.graph))
        if not _is_wanted(graphs) or not _fits(graphs):
            return ir.passes.PassResult(model, False)
        for value in [value for value in model.graph.inputs if value.dtype in OTHER_FLOATS and value.uses()]:
            _cast_behind(model.graph, value)
        narrow = [(value, value.dtype) for value in model.graph.outputs if value.dtype in OTHER_FLOATS]
        kept = {id(value) for value in model.graph.inputs}
        for graph in graphs:
            _widen(graph, kept)
        for value, kind in narrow:
            if value.producer() is not None and kind is not None:
                _cast_before(model.graph, value, kind)
        return ir.passes.PassResult(model, True)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield a graph and the bodies in it."""
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())


def _is_wanted(graphs: list[ir.Graph]) -> bool:
    nodes = [node for graph in graphs for node in graph]
    layers = [node for node in nodes if node.op_type in LINEAR_OPS and not node.domain]
    narrow = any(value is not None and value.dtype in OTHER_FLOATS for node in layers for value in node.inputs)
    return narrow and all(node.domain in KNOWN_DOMAINS for node in nodes)


def _fits(graphs: list[ir.Graph]) -> bool:
    """Whether all constants are within float32's range."""
    limit = float(np.finfo(np.float32).max)
    for graph in graphs:
        for value in graph.initializers.values():
            values = constant(value) if value.dtype == ir.DataType.DOUBLE else None
            if values is not None and (np.abs(values[np.isfinite(values)]) > limit).any():
                return False
    return True


def _widen(graph: ir.Graph, kept: set[int]) -> None:
    """Widen constants, attributes and types of one graph; `kept` values stay as they are."""
    for value in [*graph.initializers.values(), *graph.inputs, *(out for node in graph for out in node.outputs)]:
        if value.dtype in OTHER_FLOATS and id(value) not in kept:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        tensor = value.const_value
        if tensor is not None and tensor.dtype in OTHER_FLOATS:
            value.const_value = _single(tensor)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if name in TYPED and attribute.type == ir.AttributeType.INT and attribute.as_int() in OTHER_FLOATS:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in OTHER_FLOATS:
                node.attributes[name] = ir.AttrTensor(name, _single(attribute.as_tensor()))


def _single(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _cast_behind(graph: ir.Graph, value: ir.Value) -> None:
    node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    node.outputs[0].name = fresh_value_name(graph, f"{value.name}_float32")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    readers = [(use.node, use.idx) for use in value.uses() if use.node is not node]
    for reader, index in readers:
        reader.replace_input_with(index, node.outputs[0])
    graph.insert_before(graph[0], node)


def _cast_before(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> None:
    node = ir.node("Cast", [value], {"to": int(kind)})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
    name, value.name = value.name, fresh_value_name(graph, f"{value.name}_float32")
    node.outputs[0].name = name
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = node.outputs[0]
    graph.append(node)
