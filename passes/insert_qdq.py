"""Lowering of the float graph and the plan to one graph with QuantizeLinear / DequantizeLinear pairs.

This is the only pass that writes integers. onnxruntime turns each integer node between such pairs into an integer
kernel; what it fuses, and what must not be written because it would quietly run in float, is noted where it matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import onnx_ir as ir

from ptq.codecs.bitplanes import BYTE
from ptq.core.affine import QuantParams
from ptq.core.encoding import LookupWeight
from ptq.core.layer import LinearLayer
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.ramp import Ramp
from ptq.passes._guards import avoid_float_fusion, keep_blocks, keep_float, take_over
from ptq.passes._qdq import decoder
from ptq.passes.gates import ramp_of
from ptq.passes.given import rounding_of
from ptq.passes.graph_writer import GraphWriter, Store
from ptq.passes.linear import bias_add, constant, name_of
from ptq.passes.lower_columns import lower_columns
from ptq.passes.lower_stored import lower_float_bias, lower_stored, lower_table
from ptq.passes.lower_weight import WeightWriter, dequantized
from ptq.passes.lowered_layer import LoweredLayer
from ptq.passes.placement import Placement
from ptq.passes.planner import is_number_on_codes
from ptq.passes.tables import Table
from ptq.passes.unused import RemoveUnused

FLOAT = ir.DataType.FLOAT

EXACT = 64
"""Code of a number beside codes: a power of two, so that its scale loses nothing."""

ON_CODES = frozenset({"Pad", "SpaceToDepth"})
"""Moving nodes that onnxruntime does not pull through Q/DQ pairs: written on the codes themselves."""


@dataclass(frozen=True)
class InsertQdq(ir.passes.InPlacePass):
    """Write a plan into a graph.

    Before: y = Conv(x, w, b)
    After:  y = DQ(Q(Conv(DQ(Q(x)), DQ(w_codes), DQ(b_codes))))
    Requires: the graph that `placement` was made from.
    Ensures: every value of the plan is read through its codes by integer nodes; no float weight is left behind.
    Preserves float outputs: no.

    Attributes:
        plan: Grids and codes.
        placement: Nodes that run on integers.
    """

    plan: QuantPlan
    placement: Placement

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the pairs, swap the weights, drop what is dead."""
        lower_layers(model, self.plan, self.placement)
        return ir.passes.PassResult(model, True)


def lower_layers(
    model: ir.Model, plan: QuantPlan, placement: Placement, *, compact: bool = True
) -> Mapping[str, LoweredLayer]:
    """Write a plan into a graph, in place.

    Args:
        model: The graph that `placement` was made from.
        plan: Grids and codes.
        placement: Nodes that run on integers.
        compact: Store codes at their word length; without it they are plain int8 and can be rewritten.

    Returns:
        Place of each layer in the graph.
    """
    weights = WeightWriter(GraphWriter(model.graph), compact, placement.tied)
    lowering = _Lowering(model.graph, plan, placement, weights)
    lowering.activations()
    layers = {layer.name: lowering.weight(layer) for layer in placement.layers}
    for table in placement.tables:
        if table.name in plan.weights:
            lowering.table(table)
    for weight in placement.stored:
        if weight.name in plan.weights:
            lower_stored(lowering.weights, model, weight, plan.weights[weight.name])
    for node in model.graph:
        bias = None if name_of(node) in layers else plan.biases.get(name_of(node))
        if isinstance(bias, FloatBias):
            lower_float_bias(model.graph, node, bias)
    lowering.weights.unpack()
    avoid_float_fusion(model.graph, lowering.integer)
    keep_float(model.graph, lowering.integer)
    keep_blocks(model.graph)
    RemoveUnused()(model)
    return layers


def lower_one_by_one(
    model: ir.Model, placement: Placement, plans: Iterable[tuple[LinearLayer, QuantPlan]], store: Store
) -> None:
    """Write weights into a graph, in place, each as soon as its plan is there.

    Args:
        model: The graph that `placement` was made from; activations stay float.
        placement: Its layers.
        plans: Each layer with a plan that holds it.
        store: Store that the codes go to.
    """
    weights = WeightWriter(GraphWriter(model.graph, store))
    lowering = _Lowering(model.graph, QuantPlan({}, {}, {}), placement, weights)
    for layer, plan in plans:
        lowering.plan = plan
        lowering.weight(layer)
    lowering.weights.unpack()
    avoid_float_fusion(model.graph, lowering.integer)
    keep_blocks(model.graph)
    RemoveUnused()(model)


@dataclass
class _Lowering:
    graph: ir.Graph
    plan: QuantPlan
    placement: Placement
    weights: WeightWriter
    scales: dict[tuple[bytes, bytes, str], tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes, self.writer = list(self.graph), self.weights.writer
        self.values = {str(v.name): v for v in self.graph.inputs} | {
            str(v.name): v for n in nodes for v in n.outputs if v.name
        }
        # By identity: a graph output's producer is renamed on the way.
        self.integer = {node for node in nodes if name_of(node) in self.placement.integer_nodes}
        first = [members[0] for members in self.placement.groups]
        grids = self.plan.activations
        self.read_by_gate = {first[gate]: grids[first[source]] for gate, source in self.placement.gates.items()}

    def activations(self) -> None:
        """Put a Q/DQ pair behind every value that has a grid, and point its readers at the right side of it."""
        for name, params in self.plan.activations.items():
            value = self.values[name]
            producer = value.producer()
            if name in self.placement.given:
                self._read_given(value)
            elif producer is not None and producer.op_type in ON_CODES and producer in self.integer:
                self._move_on_codes(producer, params)
            elif producer is not None and producer in self.integer and (ramp := ramp_of(producer)) is not None:
                self._clip_codes(producer, params, ramp)
            else:
                self._insert_pair(value, params)
        for node in list(self.graph):
            if node in self.integer and is_number_on_codes(node):
                self._encode_number(node)

    def weight(self, layer: LinearLayer) -> LoweredLayer:
        """Replace the float weight and bias of a layer by codes."""
        node = self.values[layer.name].producer()
        assert node is not None  # a layer is named after a node's output
        on_codes = layer.source in self.plan.activations
        encoding = self.plan.weights[layer.name]
        node.replace_input_with(layer.weight_index, self.weights.of_layer(layer, encoding, on_codes=on_codes))
        if isinstance(encoding, LookupWeight):  # its kernel is float, whatever it reads
            self.integer.discard(node)
        return LoweredLayer.of(layer, node, self._bias(layer, node))

    def table(self, table: Table) -> None:
        """Let the readers of an embedding table pick codes, wherever they are."""
        first = [(node, next(iter(node.inputs), None)) for node in self.graph.all_nodes()]
        readers = [node for node, value in first if value is not None and value.name == table.name]
        product = next((layer.weight for layer in self.placement.layers if layer.name == table.product), "")
        blocks = self.weights.blocks.get(product)
        if blocks is not None and self.weights.compact:
            self.values |= lower_columns(self.weights, table, readers, blocks)
        else:
            self.values |= lower_table(self.weights, table.name, readers, self.plan.weights[table.name])

    def _bias(self, layer: LinearLayer, node: ir.Node) -> ir.Value | None:
        match self.plan.biases.get(layer.name):
            case BiasEncoding(codes, scale):
                # Without a zero point: it is 0 by definition, and some runtimes reject one of type int32.
                node.resize_inputs(3)
                stored = self.writer.initializer(f"{layer.name}_bias_quantized", codes)
                decoded = dequantized(self.writer, f"{layer.name}_bias", (stored, scale, None), 0)
                node.replace_input_with(2, decoded)
                return decoded
            case FloatBias(values) if layer.op_type != "MatMul":
                stored = self.writer.initializer(f"{layer.name}_bias", values)
                node.resize_inputs(3)
                node.replace_input_with(2, stored)
                return stored
            case FloatBias(values):
                add, stored = bias_add(node), self.writer.initializer(f"{layer.name}_bias", values)
                for position, value in enumerate(add.inputs if add is not None else ()):
                    if add is not None and value is not None and value.name == layer.bias:
                        add.replace_input_with(position, stored)
                return stored
            case None:
                return None
            case never:
                assert_never(never)

    def _insert_pair(self, value: ir.Value, params: QuantParams) -> None:
        name = str(value.name)
        produced = name in self.placement.produced
        readers = [use for use in value.uses() if produced or use.node in self.integer]
        is_output = produced and value.is_graph_output()
        scale, zero = self._grid(name, params)
        within = self._clipped(value, params)
        codes = self.writer.node("QuantizeLinear", [within, scale, zero], f"{name}_q", (zero.dtype, value.shape))
        back = self.writer.node("DequantizeLinear", [codes, scale, zero], f"{name}_dq", (FLOAT, value.shape))
        for use in readers:
            use.node.replace_input_with(use.idx, back)
        made = [within.producer()] if within is not value else []
        first = [node for node in (*made, codes.producer(), back.producer()) if node is not None]
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], first)
        else:
            self.graph.insert_after(producer, first)
        if is_output:
            self._become_output(value, back)

    def _read_given(self, value: ir.Value) -> None:
        """Let other integer readers see the codes that the model came with, too."""
        name, source, rounding = str(value.name), value.producer(), rounding_of(value)
        produced = name in self.placement.produced
        readers = [use for use in value.uses() if produced or use.node in self.integer]
        readers = [use for use in readers if use.node.op_type != "QuantizeLinear"]
        if rounding is None or not readers:
            return
        codes = rounding.outputs[0]
        back = self.writer.node("DequantizeLinear", [codes, *rounding.inputs[1:]], f"{name}_dq", (FLOAT, value.shape))
        for use in readers:
            use.node.replace_input_with(use.idx, back)
        made = [rounding, *([] if (node := back.producer()) is None else [node])]
        self.graph.remove(rounding)
        if source is None:
            self.graph.insert_before(self.graph[0], made)
        else:
            self.graph.insert_after(source, made)

    def _clipped(self, value: ir.Value, params: QuantParams) -> ir.Value:
        """Clip short words, which have no type: a QuantizeLinear to bytes has to find values in their range."""
        spec = params.spec
        if spec.num_bits == BYTE:
            return value
        low, high = ((code - int(params.zero_point)) * params.scale for code in spec.limits)
        name = str(value.name)
        ends = [
            self.writer.initializer(f"{name}_{key}", np.asarray(end, np.float32))
            for key, end in (("low", low), ("high", high))
        ]
        return self.writer.node("Clip", [value, *ends], f"{name}_clipped", (FLOAT, value.shape))

    def _become_output(self, value: ir.Value, back: ir.Value) -> None:
        """Give the decoded value the name and place of a graph output."""
        name = str(value.name)
        outputs = self.graph.outputs
        outputs[list(outputs).index(value)] = back
        value.name = self.writer.fresh(f"{name}_float")
        back.name = name

    def _move_on_codes(self, node: ir.Node, params: QuantParams) -> None:
        """Write a node on the codes: onnxruntime leaves DQ -> Pad -> Q alone, and this moves a quarter of the bytes."""
        name = name_of(node)
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            raise RuntimeError(f"{name} should read decoded values")
        scale, zero = self._grid(name, params)
        inputs = [source.inputs[0], *node.inputs[1:]]
        if node.op_type == "Pad":
            inputs = [source.inputs[0], node.inputs[1], zero, *node.inputs[3:]]
        moved = ir.Node("", node.op_type, inputs, node.attributes.values(), name=node.name)
        moved.outputs[0].name = self.writer.fresh(f"{name}_q")
        moved.outputs[0].type, moved.outputs[0].shape = zero.type, node.outputs[0].shape
        back = ir.Node("", "DequantizeLinear", [moved.outputs[0], scale, zero])
        self.graph.insert_before(node, [moved, back])
        take_over(node.outputs[0], back.outputs[0])
        self.graph.remove(node, safe=True)

    def _clip_codes(self, node: ir.Node, params: QuantParams, ramp: Ramp) -> None:
        """Write a hard sigmoid as a clip of the codes it reads, which are then codes of a grid of its own."""
        name, source = name_of(node), decoder(node.inputs[0])
        if source is None or source.inputs[0] is None:
            raise RuntimeError(f"{name} should read decoded values")
        codes, grid = source.inputs[0], self.read_by_gate[name]
        bounds = [
            None
            if end == limit
            else self.writer.initializer(f"{name}_{key}", np.asarray(end).astype(grid.zero_point.dtype))
            for key, end, limit in zip(("low", "high"), ramp.ends(grid), grid.spec.limits, strict=True)
        ]
        made = []
        if any(bounds):
            codes = self.writer.node("Clip", [codes, *bounds], f"{name}_q", (codes.dtype, codes.shape))
            made = [codes.producer()]
        back = ir.Node("", "DequantizeLinear", [codes, *self._grid(name, params)])
        self.graph.insert_before(node, [each for each in (*made, back) if each is not None])
        take_over(node.outputs[0], back.outputs[0])
        self.graph.remove(node, safe=True)

    def _encode_number(self, node: ir.Node) -> None:
        """Write the number beside codes as the last or first code of a grid that it lies on exactly."""
        place = next(i for i, value in enumerate(node.inputs) if constant(value) is not None)
        pair, array = decoder(node.inputs[1 - place]), constant(node.inputs[place])
        if pair is None or array is None:
            raise RuntimeError(f"{name_of(node)} should read decoded values and a number")
        kind, number = pair.inputs[2].dtype.numpy(), float(array.item())  # type: ignore[union-attr]
        name = f"{name_of(node)}_number"
        code, zero = (EXACT, 0) if number > 0 else (0, EXACT)
        stored = self.writer.initializer(name, np.asarray(code).astype(kind).reshape(array.shape))
        scale = self.writer.initializer(f"{name}_scale", np.asarray(abs(number) / EXACT, np.float32))
        middle = self.writer.initializer(f"{name}_zero_point", np.asarray(zero).astype(kind))
        back = self.writer.node("DequantizeLinear", [stored, scale, middle], f"{name}_dq", (FLOAT, stored.shape))
        self.graph.insert_before(node, [each for each in [back.producer()] if each is not None])
        node.replace_input_with(place, back)

    def _grid(self, name: str, params: QuantParams) -> tuple[ir.Value, ir.Value]:
        """Return scale and zero point as initializers; equal grids are stored once."""
        key = (params.scale.tobytes(), params.zero_point.tobytes(), str(params.zero_point.dtype))
        if key not in self.scales:
            self.scales[key] = (
                self.writer.initializer(f"{name}_scale", np.asarray(params.scale, np.float32).reshape(())),
                self.writer.initializer(f"{name}_zero_point", np.asarray(params.zero_point).reshape(())),
            )
        return self.scales[key]
