"""Lowering to operators of domain ai.ptq where onnxruntime's own integer kernels are slower, or hold more memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ptq.core.plan import QuantPlan
from ptq.passes._qdq import decoder, is_unsigned, only_reader, quantizer, remove_between
from ptq.passes.linear import has_native_kernel, name_of
from ptq.passes.native_bodies import CENTER, CONV, DOMAIN, LOOKUP, VERSION, body
from ptq.passes.native_products import rewrite_product
from ptq.passes.native_tables import write_tables
from ptq.passes.unused import RemoveUnused

OVERLOADS_IR = 10
"""Version of the file format that knows several functions of one name."""

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class UseNative(ir.passes.InPlacePass):
    """Write convolutions in small groups and products as one operator on codes each.

    Before: y = Q(Relu(Conv(DQ(x), DQ(w), DQ(b))))
    After:  y = Transpose(NhwcQLinearConv(Transpose(x), scales, zero points, w, b)); onnxruntime cancels the transposes
            against those that it puts around its own convolutions
    Before: y = Q(Add(DQ(Q(Conv(DQ(x), ...))), DQ(Q(Conv1x1(DQ(x), ...))))), as SplitCenter leaves it
    After:  the same with NhwcQLinearConvWithCenter, which rounds once
    Before: y = [Q](Gemm(DQ(x), DQ(w), DQ(b)))
    After:  y = QLinearMatMulNBits[ToFloat](x, scale, zero point, packed w, ...)
    Before: y = Q(f(DQ(x))), where f computes with x and numbers only
    After:  y = Lookup(x, the 256 codes that f comes to)
    Requires: a lowered graph with unsigned activations.
    Ensures: every operator carries a function of standard operators, which runs where the library is absent.

    Attributes:
        plan: Plan that the graph was lowered with.
        words: Word lengths of weights whose products are rewritten.
        tied: Products whose codes a table reads, too: packed, they would lie there twice.
    """

    plan: QuantPlan
    words: Collection[int]
    tied: Collection[str] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every layer that fits."""
        opset, graph = model.opset_imports[""], model.graph
        functions = [body(LOOKUP, opset)] if write_tables(model) else []
        for node in [node for node in graph if not node.domain]:
            if node.op_type == "Conv" and has_native_kernel(node) and _rewrite_conv(graph, node):
                functions.append(body(CONV, opset))
            elif node.op_type == "Add" and _rewrite_sum(graph, node):
                functions.append(body(CENTER, opset))
            elif node.op_type in ("MatMul", "Gemm") and name_of(node) not in self.tied:
                made = rewrite_product(graph, node, self.plan.weights.get(name_of(node)), self.words)
                functions += [] if made is None else [body(made.op_type, opset, clipped="min" in made.attributes)]
        for function in functions:
            model.functions.setdefault(function.identifier(), function)
            model.opset_imports[DOMAIN] = VERSION
            if function.overload:
                model.ir_version = max(model.ir_version, OVERLOADS_IR)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, bool(functions))


@dataclass(frozen=True)
class _Conv:
    """Convolution between Q/DQ pairs.

    Attributes:
        node: Conv that computes in float.
        x: Node that decodes its input.
        w: Node that decodes its weight.
        b: Node that decodes its bias.
        end: Node that encodes its output.
    """

    node: ir.Node
    x: ir.Node
    w: ir.Node
    b: ir.Node
    end: ir.Node

    @property
    def grids(self) -> list[ir.Value | None]:
        """Scale and zero point of the output."""
        return list(self.end.inputs[1:3])

    @property
    def reach(self) -> list[int]:
        """Steps of the input from a kernel's edge to its center."""
        kernel = [int(extent) for extent in list(self.node.inputs[1].shape)[2:]]  # type: ignore[union-attr, arg-type]
        return [rate * (size // 2) for rate, size in zip(self.attributes["dilations"], kernel, strict=True)]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the operator."""
        given = self.node.attributes
        return {
            "group": given.get_int("group", 1),
            "strides": list(given.get_ints("strides", (1, 1))),
            "pads": list(given.get_ints("pads", (0, 0, 0, 0))),
            "dilations": list(given.get_ints("dilations", (1, 1))),
        }


def _read_conv(node: ir.Node | None) -> _Conv | None:
    """Read a convolution in two axes whose input, weight, bias and output are 8-bit codes, with pads that are given."""
    if node is None or node.op_type != "Conv" or node.domain or len(node.inputs) < 3:
        return None
    x, w, b = (decoder(value) for value in node.inputs)
    end = quantizer(node)
    if x is None or w is None or b is None or end is None or not (is_unsigned(x) and is_unsigned(end)):
        return None
    weight, shape = w.inputs[0], node.inputs[1].shape if node.inputs[1] is not None else None
    flat = shape is not None and len(shape) == 4 and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    return _Conv(node, x, w, b, end) if flat and weight is not None and weight.dtype == ir.DataType.INT8 else None


def _rewrite_conv(graph: ir.Graph, node: ir.Node) -> bool:
    conv = _read_conv(node)
    if conv is None:
        return False
    inputs = [conv.x.inputs[1], conv.x.inputs[2], conv.w.inputs[0], conv.w.inputs[1], *conv.grids, conv.b.inputs[0]]
    _replace(graph, conv, conv.end, ir.node(CONV, [None, *inputs], conv.attributes, domain=DOMAIN, name=node.name))
    remove_between(graph, node, conv.end)
    return True


def _rewrite_sum(graph: ir.Graph, add: ir.Node) -> bool:
    """Rewrite a convolution and one with its kernel's center, added."""
    ends = [decoder(value) for value in add.inputs]
    if any(end is None or only_reader(end) is not add or end.inputs[0] is None for end in ends):
        return False
    sources = [end.inputs[0].producer() for end in ends if end is not None and end.inputs[0] is not None]
    found = [_read_conv(source.inputs[0].producer()) for source in sources if source and source.inputs[0]]
    last = quantizer(add)
    if len(found) != 2 or last is None or not is_unsigned(last):
        return False
    fine, coarse = found
    if fine is None or coarse is None or not _is_center(coarse, fine):
        return False
    fine_in = [fine.x.inputs[1], fine.x.inputs[2], fine.w.inputs[0], fine.w.inputs[1]]
    inputs = [*fine_in, *last.inputs[1:3], fine.b.inputs[0], coarse.w.inputs[0], coarse.w.inputs[1], coarse.b.inputs[0]]
    inputs += [*fine.grids, *coarse.grids]
    attributes = {**fine.attributes, "center_pads": coarse.attributes["pads"]}
    _replace(graph, fine, last, ir.node(CENTER, [None, *inputs], attributes, domain=DOMAIN, name=fine.node.name))
    remove_between(graph, add, last)
    for conv, end in zip(found, ends, strict=True):
        if conv is not None and end is not None:
            remove_between(graph, conv.node, end)
    return True


def _is_center(coarse: _Conv, fine: _Conv) -> bool:
    """Whether one convolution reads what the other's center reads, and kernels take both."""
    weight = fine.node.inputs[1]
    extents = [] if weight is None or weight.shape is None else list(weight.shape)
    small = coarse.node.inputs[1]
    same = coarse.x.inputs[0] is fine.x.inputs[0] and coarse.attributes["strides"] == fine.attributes["strides"]
    groups = {coarse.attributes["group"], fine.attributes["group"]} == {1}
    aligned = [pad - reach for pad, reach in zip(fine.attributes["pads"], fine.reach * 2, strict=True)]
    is_point = small is not None and small.shape is not None and list(small.shape)[2:] == [1, 1]
    odd = all(isinstance(extent, int) and extent % 2 for extent in extents[2:])
    fits = same and groups and is_point and odd and extents[1] % 4 == 0
    return fits and aligned == coarse.attributes["pads"]


def _replace(graph: ir.Graph, conv: _Conv, end: ir.Node, made: ir.Node) -> None:
    """Put an operator with channels last, between transposes, in the place of what `end` encodes."""
    name = name_of(conv.node)
    turned = ir.node("Transpose", [conv.x.inputs[0]], {"perm": TO_LAST}, name="")
    made.replace_input_with(0, turned.outputs[0])
    back = ir.node("Transpose", [made.outputs[0]], {"perm": TO_FIRST}, name="")
    codes = end.outputs[0]
    for node, suffix in ((turned, "last"), (made, "conv"), (back, "first")):
        node.outputs[0].name, node.outputs[0].dtype = f"{name}_{suffix}", ir.DataType.UINT8
    graph.insert_after(end, [turned, made, back])
    back.outputs[0].shape = codes.shape
    ir.convenience.replace_all_uses_with(codes, back.outputs[0], replace_graph_outputs=True)
