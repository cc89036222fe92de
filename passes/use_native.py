"""Operators of domain ai.ptq where onnxruntime's own integer kernels are slower, or hold more memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from ptq.core.plan import QuantPlan
from ptq.passes._linear import has_native_kernel, name_of
from ptq.passes._qdq import decoder, is_unsigned, quantizer, remove_between
from ptq.passes.native_bodies import DOMAIN, VERSION, body
from ptq.passes.native_products import rewrite_product

CONV = "NhwcQLinearConv"
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class UseNative(ir.passes.InPlacePass):
    """Write convolutions in small groups and products as one operator on codes each.

    Before: y = Q(Relu(Conv(DQ(x), DQ(w), DQ(b))))
    After:  y = Transpose(NhwcQLinearConv(Transpose(x), scales, zero points, w, b)); onnxruntime cancels the transposes
            against those that it puts around its own convolutions
    Before: y = [Q](Gemm(DQ(x), DQ(w), DQ(b)))
    After:  y = QLinearMatMulNBits[ToFloat](x, scale, zero point, packed w, ...)
    Requires: a lowered graph with unsigned activations.
    Ensures: every operator carries a function of standard operators, which runs where the library is absent.

    Attributes:
        plan: What the graph was lowered with.
    """

    plan: QuantPlan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every layer that fits."""
        used = set[str]()
        for node in [node for node in model.graph if not node.domain]:
            if node.op_type == "Conv" and has_native_kernel(node) and _rewrite_conv(model.graph, node):
                used.add(CONV)
            elif node.op_type in ("MatMul", "Gemm"):
                used |= {rewrite_product(model.graph, node, self.plan.weights.get(name_of(node))) or ""}
        for op_type in sorted(used - {""}):
            function = body(op_type, model.opset_imports[""])
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = VERSION
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, bool(used))


def _rewrite_conv(graph: ir.Graph, node: ir.Node) -> bool:
    decoders = [decoder(value) for value in node.inputs]
    end = quantizer(node)
    if end is None or any(each is None for each in decoders) or len(decoders) < 3:
        return False
    x, w, b = (each for each in decoders if each is not None)
    weight = w.inputs[0]
    if weight is None or weight.dtype != ir.DataType.INT8 or not (is_unsigned(x) and is_unsigned(end)):
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
    remove_between(graph, node, end)
    return True
