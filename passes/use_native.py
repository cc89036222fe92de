"""Operators of domain ai.ptq where onnxruntime's own integer kernels are slower than float ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ptq.passes._linear import constant, has_native_kernel, name_of

DOMAIN, VERSION = "ai.ptq", 1
CONV = "NhwcQLinearConv"
ATTRIBUTES = ("group", "strides", "pads", "dilations")
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class UseNative(ir.passes.InPlacePass):
    """Write convolutions in small groups as one operator on codes, channels last.

    Before: y = Q(Relu(Conv(DQ(x), DQ(w), DQ(b))))
    After:  y = Transpose(NhwcQLinearConv(Transpose(x), scales, zero points, w, b)); onnxruntime cancels the transposes
            against those that it puts around its own convolutions
    Requires: a lowered graph with unsigned activations.
    Ensures: the operator carries a function of standard operators, which runs where the library is absent, with the
        same result.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every convolution that fits."""
        convolutions = [node for node in model.graph if node.op_type == "Conv" and not node.domain]
        done = [node for node in convolutions if has_native_kernel(node) and _rewrite(model.graph, node)]
        if done:
            function = ir.serde.deserialize_function(_function(model.opset_imports[""]))
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = VERSION
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(done))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    decoders = [_decoder(value) for value in node.inputs]
    end = _quantizer(node)
    if end is None or any(decoder is None for decoder in decoders) or len(decoders) < 3:
        return False
    x, w, b = (decoder for decoder in decoders if decoder is not None)
    weight = w.inputs[0]
    unsigned = all(zero is not None and zero.dtype == ir.DataType.UINT8 for zero in (x.inputs[2], end.inputs[2]))
    if weight is None or weight.dtype != ir.DataType.INT8 or not unsigned:
        return False
    name = name_of(node)
    turned = ir.node("Transpose", [x.inputs[0]], {"perm": TO_LAST}, name="")
    rank = len(weight.shape) - 2 if weight.shape is not None else 2
    attributes: dict[str, Any] = {
        "group": node.attributes.get_int("group", 1),
        "strides": list(node.attributes.get_ints("strides", (1,) * rank)),
        "pads": list(node.attributes.get_ints("pads", (0,) * 2 * rank)),
        "dilations": list(node.attributes.get_ints("dilations", (1,) * rank)),
    }
    inputs = [turned.outputs[0], *x.inputs[1:3], weight, w.inputs[1], *end.inputs[1:3], b.inputs[0]]
    conv = ir.node(CONV, inputs, attributes, domain=DOMAIN, name="")
    back = ir.node("Transpose", [conv.outputs[0]], {"perm": TO_FIRST}, name="")
    codes = end.outputs[0]
    for made, suffix in ((turned, "last"), (conv, "conv"), (back, "first")):
        made.outputs[0].name, made.outputs[0].dtype = f"{name}_{suffix}", ir.DataType.UINT8
    graph.insert_after(end, [turned, conv, back])
    back.outputs[0].shape = codes.shape
    ir.convenience.replace_all_uses_with(codes, back.outputs[0], replace_graph_outputs=True)
    dead: ir.Node | None = end
    while dead is not None and dead is not node:  # the quantizer and the Relu before it
        source = dead.inputs[0].producer() if dead.inputs[0] is not None else None
        graph.remove(dead, safe=True)
        dead = source
    graph.remove(node, safe=True)
    return True


def _decoder(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" and len(node.inputs) >= 2 else None


def _quantizer(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads a node, directly or behind a Relu or Clip that its range makes redundant."""
    reader = _only_reader(node)
    if reader is not None and reader.op_type in ("Relu", "Clip") and not reader.domain:
        end = _only_reader(reader)
        return end if end is not None and end.op_type == "QuantizeLinear" and _is_redundant(reader, end) else None
    return reader if reader is not None and reader.op_type == "QuantizeLinear" else None


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _is_redundant(clip: ir.Node, end: ir.Node) -> bool:
    """Whether codes cannot leave the clip's interval, half a step aside."""
    scale, zero = (_scalar(value) for value in end.inputs[1:3])
    ends = [_scalar(value) for value in clip.inputs[1:3]] if clip.op_type == "Clip" else [0.0, None]
    low, high = [*ends, None, None][:2]
    if scale is None or zero is None:
        return False
    above = low is None or -zero * scale >= low - scale / 2
    return above and (high is None or (255 - zero) * scale <= high + scale / 2)


def _scalar(value: ir.Value | None) -> float | None:
    array: NDArray[Any] | None = constant(value)
    return None if array is None or array.size != 1 else float(array.item())


def _function(opset: int) -> onnx.FunctionProto:
    """What the operator means, in standard ones."""
    inputs = ["x", "x_scale", "x_zero_point", "w", "w_scale", "y_scale", "y_zero_point", "B"]
    helper = onnx.FunctionProto(name=CONV, domain=DOMAIN, input=inputs, output=["y"], attribute=ATTRIBUTES)
    helper.opset_import.add(domain="", version=opset)
    zero = helper.node.add(op_type="Constant", output=["w_zero_point"])
    zero.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        onnx.numpy_helper.from_array(np.array(0, np.int8))
    )
    _transpose(helper, "x", "x_first", TO_FIRST)
    read = ["x_first", *inputs[1:5], "w_zero_point", *inputs[5:]]
    conv = helper.node.add(op_type="QLinearConv", input=read, output=["y_first"])
    for key in ATTRIBUTES:
        kind = onnx.AttributeProto.INT if key == "group" else onnx.AttributeProto.INTS
        conv.attribute.add(name=key, ref_attr_name=key, type=kind)
    _transpose(helper, "y_first", "y", TO_LAST)
    return helper


def _transpose(function: onnx.FunctionProto, source: str, to: str, perm: tuple[int, ...]) -> None:
    node = function.node.add(op_type="Transpose", input=[source], output=[to])
    node.attribute.add(name="perm", type=onnx.AttributeProto.INTS).ints.extend(perm)
