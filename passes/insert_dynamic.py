"""Lowering of products whose inputs become integers while the model runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from ptq.core.layer import LinearLayer
from ptq.core.plan import QuantPlan
from ptq.passes.decoding import decoding_of
from ptq.passes.graph_writer import GraphWriter
from ptq.passes.integer_lstm import IntegerLstm
from ptq.passes.linear import name_of
from ptq.passes.native_bodies import DOMAIN, VERSION, body
from ptq.passes.native_products import rewrite_dynamic
from ptq.passes.placement import Placement
from ptq.passes.unused import RemoveUnused
from ptq.passes.use_native import OVERLOADS_IR


@dataclass(frozen=True)
class InsertDynamic(ir.passes.InPlacePass):
    """Quantize the inputs of products by their own range.

    Before: y = MatMul(x, Mul(Cast(w_codes), w_scale)), as `InsertQdq` leaves a layer whose input has no grid
    After:  q, s, z = DynamicQuantizeLinear(x);  y = Mul(Cast(MatMulInteger(q, w_codes, z)), Mul(s, w_scale)); a Gemm
            likewise, with Add for its bias. onnxruntime makes it MatMulIntegerToFloat. Or y = DynamicMatMulNBits(x, w)
    Requires: a graph lowered with `plan` and `placement`, whose activations have no grids.
    Ensures: LSTM layers run on integers too; products that read the same value share what its range costs.

    Attributes:
        plan: Plan that the graph was lowered with.
        placement: Layers of the graph.
        words: Word lengths of weights whose products run on operators of our own: one range per row of the input
            instead of one for all.
    """

    plan: QuantPlan
    placement: Placement
    words: Collection[int]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the products of all layers, and LSTMs."""
        writer = _Writer(GraphWriter(model.graph))
        nodes = {name_of(node): node for node in model.graph}
        for layer in self.placement.layers:
            node = nodes[layer.name]
            words = () if layer.name in self.placement.tied else self.words  # packed, they would lie there twice
            made = rewrite_dynamic(model.graph, node, self.plan.weights[layer.name], words)
            if made is None:
                writer.rewrite(node, layer)
                continue
            blocks = made.attributes.get_int("block_size") > 0
            function = body(made.op_type, model.opset_imports[""], blocks=blocks, clipped="min" in made.attributes)
            model.functions.setdefault(function.identifier(), function)
            model.opset_imports[DOMAIN] = VERSION
            model.ir_version = max(model.ir_version, OVERLOADS_IR)
        IntegerLstm(self.plan, self.placement)(model)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, bool(self.placement.layers))


@dataclass
class _Writer:
    writer: GraphWriter
    quantized: dict[ir.Value, ir.Node] = field(default_factory=dict)

    def rewrite(self, node: ir.Node, layer: LinearLayer) -> None:
        """Write one product on stock operators; nothing where its weight is not codes times scales."""
        found = _codes_and_scale(node)
        source = node.inputs[0]
        if found is None or source is None:
            return
        codes, scale = found
        made: list[ir.Node] = []
        quantize = self._quantize(source)
        turned = layer.layout.out_axis == 0
        if turned:
            codes = self._add(made, "Transpose", [codes], f"{layer.name}_turned", {"perm": [1, 0]})
        weight_steps = self.writer.initializer(f"{layer.name}_steps", scale.numpy().reshape(-1))
        total = self._add(
            made, "MatMulInteger", [quantize.outputs[0], codes, quantize.outputs[2]], f"{layer.name}_int32"
        )
        wide = self._add(made, "Cast", [total], f"{layer.name}_wide", {"to": int(ir.DataType.FLOAT)})
        steps = self._add(made, "Mul", [quantize.outputs[1], weight_steps], f"{layer.name}_step")
        result = self._add(made, "Mul", [wide, steps], f"{layer.name}_product")
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is not None:
            result = self._add(made, "Add", [result, bias], f"{layer.name}_biased")
        out = node.outputs[0]
        self.writer.graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)
        name, out.name = out.name, None
        result.name, result.shape, result.type = name, out.shape, out.type
        self.writer.graph.remove(node, safe=True)

    def _quantize(self, source: ir.Value) -> ir.Node:
        if source not in self.quantized:
            node = ir.node("DynamicQuantizeLinear", [source], num_outputs=3)
            for value, part in zip(node.outputs, ("codes", "step", "zero"), strict=True):
                value.name = self.writer.fresh(f"{source.name}_{part}")
            producer = source.producer()
            if producer is None:
                self.writer.graph.insert_before(self.writer.graph[0], node)
            else:
                self.writer.graph.insert_after(producer, node)
            self.quantized[source] = node
        return self.quantized[source]

    def _add(
        self,
        made: list[ir.Node],
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        attributes: dict[str, int | list[int]] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes or {}, name="")
        node.outputs[0].name = self.writer.fresh(name)
        made.append(node)
        return node.outputs[0]


def _codes_and_scale(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol] | None:
    """Find what a weight is made of: int8 codes, and one scale per feature; None if it is made otherwise."""
    found = decoding_of(node.inputs[1])
    if found is None or found.node.op_type != "Mul" or found.scale.const_value is None:
        return None
    return found.codes, found.scale.const_value
