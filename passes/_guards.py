"""Guards against fusions by which onnxruntime would quietly make something slower of a lowered graph."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import numpy as np
import onnx_ir as ir

from ptq.passes._qdq import decoder, only_reader
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import name_of

INTEGER_AT_LOAD = frozenset({"Conv", "ConvTranspose", "Gemm", "AveragePool", "MaxPool"})


def avoid_float_fusion(graph: ir.Graph, integer: AbstractSet[ir.Node]) -> None:
    """Write Add as Sum behind an integer product, and before a LayerNormalization.

    onnxruntime fuses MatMul + Add into a float Gemm before it looks for integers, and then decodes the weight on every
    run; Add + LayerNormalization it fuses into an operator that takes several times as long as the two. It leaves Sum
    alone.

    Args:
        graph: Lowered; changed in place.
        integer: Nodes that run on integers.
    """
    for node in list(graph):
        if node.op_type == "Add" and not node.domain and (_adds_product(node, integer) or _is_normalized(node)):
            total = ir.Node("", "Sum", node.inputs, name=node.name)
            graph.insert_before(node, total)
            take_over(node.outputs[0], total.outputs[0])
            graph.remove(node, safe=True)


def keep_float(graph: ir.Graph, integer: AbstractSet[ir.Node]) -> None:
    """Stand a one-input Sum (the identity, to every runtime) around what was left in float on purpose.

    onnxruntime quantizes a float Conv, ConvTranspose or Gemm between DQ and Q by itself when the session opens: one
    scale for the whole weight, and no word about it; and it takes its slow integer AveragePool there. It does so only
    right behind a DequantizeLinear. Past a MaxPool it moves DQ down and Q up; its MaxPool of codes takes 20 times as
    long as the float one where channels do not come last.

    Args:
        graph: Lowered; changed in place.
        integer: Nodes that run on integers.
    """
    names = {str(value.name) for node in graph for value in node.outputs} | set(graph.initializers)
    for node in list(graph):
        if node.op_type not in INTEGER_AT_LOAD or node.domain or node in integer:
            continue
        source = node.inputs[0]
        if source is not None and decoder(source) is not None:
            node.replace_input_with(0, _guarded(graph, source, f"{name_of(node)}_input", names))
        encoders = [use for use in node.outputs[0].uses() if use.node.op_type == "QuantizeLinear"]
        if node.op_type == "MaxPool" and encoders:
            same = _guarded(graph, node.outputs[0], f"{name_of(node)}_output", names)
            for use in encoders:
                use.node.replace_input_with(use.idx, same)


def _guarded(graph: ir.Graph, source: ir.Value, name: str, names: set[str]) -> ir.Value:
    """Return the identity of a value, written as a Sum right behind it."""
    guard, maker = ir.node("Sum", [source], name=""), source.producer()
    while name in names:
        name += "_"
    names.add(name)
    out = guard.outputs[0]
    out.name, out.shape, out.type = name, source.shape, source.type
    if maker is not None:
        graph.insert_after(maker, guard)
    return out


def keep_blocks(graph: ir.Graph) -> None:
    """Write Relu as Max behind a product whose weight has scales per block, and stand a one-input Sum before a Clip.

    onnxruntime does not make its MatMulNBits of a product that only a Relu or Clip reads, if another product follows:
    it would decode the weight on every run.

    Args:
        graph: Lowered; changed in place.
    """
    for node in list(graph):
        pair = decoder(node.inputs[1]) if node.op_type == "MatMul" and not node.domain else None
        reader = only_reader(node)
        if pair is None or "block_size" not in pair.attributes or reader is None or reader.domain:
            continue
        if reader.op_type == "Relu":
            zero = add_initializer(graph, fresh_name(graph, f"{name_of(node)}_least"), np.array(0, np.float32))
            least = ir.node("Max", [node.outputs[0], zero], name="")
            graph.insert_before(reader, least)
            take_over(reader.outputs[0], least.outputs[0])
            graph.remove(reader, safe=True)
        elif reader.op_type == "Clip":
            same = ir.node("Sum", [node.outputs[0]], name="")
            out, source = same.outputs[0], node.outputs[0]
            out.name, out.type, out.shape = f"{source.name}_same", source.type, source.shape
            graph.insert_after(node, same)
            reader.replace_input_with(0, out)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read wherever `old` was, under its name."""
    name, shape, type_ = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = None
    new.name, new.shape, new.type = name, shape, type_


def _adds_product(node: ir.Node, integer: AbstractSet[ir.Node]) -> bool:
    return any(_is_integer_product(value, integer) for value in node.inputs)


def _is_integer_product(value: ir.Value | None, integer: AbstractSet[ir.Node]) -> bool:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "MatMul":
        return False
    return producer in integer or decoder(producer.inputs[1]) is not None


def _is_normalized(node: ir.Node) -> bool:
    return any(use.node.op_type == "LayerNormalization" for use in node.outputs[0].uses())
