"""Write grids behind a Relu without the codes below it, so that the layer in front can end on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes._qdq import only_reader
from ptq.passes.graph import add_initializer, fresh_value_name
from ptq.passes.linear import constant, name_of

BYTES = {np.dtype(np.uint8): 255, np.dtype(np.int8): 127}
"""Types of codes -> their largest."""


@dataclass(frozen=True)
class UnsignedCodes(ir.passes.InPlacePass):
    """Round what a Relu gives to uint8 with zero point 0, at the scale that it came with.

    Exports of quantization-aware training often have signed, centered codes everywhere. Behind a Relu half of them
    stand for nothing, and onnxruntime then runs the convolution before it in float.

    Before: y = DQ(Q(Relu(Conv(x)), s, z), s, z)
    After:  y = DQ(Clip(Q(Relu(Conv(x)), s, 0), max = largest - z), s, 0)
    Requires: scales and zero points that are constants for all values.
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every pair behind a Relu behind a Conv that reads codes."""
        pairs = [node for node in model.graph if is_centered_behind_relu(node)]
        for node in pairs:
            _rewrite(model.graph, node)
        return ir.passes.PassResult(model, bool(pairs))


def is_centered_behind_relu(node: ir.Node) -> bool:
    """Whether a node rounds what a Relu behind a Conv gives, to codes some of which stand for negative numbers."""
    if node.op_type != "QuantizeLinear" or node.domain or len(node.inputs) < 3 or node.outputs[0].is_graph_output():
        return False
    relu = None if node.inputs[0] is None else node.inputs[0].producer()
    layer = None if relu is None or relu.op_type != "Relu" or relu.inputs[0] is None else relu.inputs[0].producer()
    if layer is None or layer.op_type != "Conv" or only_reader(layer) is not relu:
        return False
    source, zero = (None if value is None else constant(value) for value in (node.inputs[1], node.inputs[2]))
    readers = [use.node for use in node.outputs[0].uses()]
    decoded = bool(readers) and all(_undoes(node, reader) for reader in readers)
    if source is None or source.size != 1 or zero is None or zero.size != 1 or not decoded:
        return False
    return zero.dtype in BYTES and int(zero.item()) > int(np.iinfo(zero.dtype).min)


def _undoes(node: ir.Node, reader: ir.Node) -> bool:
    """Whether a node decodes what another has rounded."""
    same = [left is right for left, right in zip(node.inputs[1:3], reader.inputs[1:3], strict=False)]
    if reader.op_type != "DequantizeLinear" or len(reader.inputs) < 3:
        return False
    if all(same):
        return True
    pairs = [(constant(a), constant(b)) for a, b in zip(node.inputs[1:3], reader.inputs[1:3], strict=True)]
    return all(a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    zero = constant(node.inputs[2])
    assert zero is not None  # as `is_centered_behind_relu` has seen
    name = name_of(node)
    least = add_initializer(graph, fresh_value_name(graph, f"{name}_least"), np.zeros(zero.shape, np.uint8))
    end = np.array(BYTES[zero.dtype] - int(zero.item()), np.uint8)
    most = add_initializer(graph, fresh_value_name(graph, f"{name}_most"), end)
    node.replace_input_with(2, least)
    codes, readers = node.outputs[0], [use.node for use in node.outputs[0].uses()]
    codes.dtype = ir.DataType.UINT8
    clip = ir.node("Clip", [codes, None, most], name="")
    clip.outputs[0].name = fresh_value_name(graph, f"{name}_clipped")
    clip.outputs[0].dtype, clip.outputs[0].shape = ir.DataType.UINT8, codes.shape
    graph.insert_after(node, clip)
    for reader in readers:
        reader.replace_input_with(0, clip.outputs[0])
        reader.replace_input_with(2, least)
