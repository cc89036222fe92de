"""Lowering: the float graph and the plan become one graph with QuantizeLinear / DequantizeLinear pairs.

This is the only pass that writes integers. onnxruntime turns each integer node between such pairs into an integer
kernel; what it fuses, and what must not be written because it would quietly run in float, is noted where it matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ptq.core.affine import QuantParams
from ptq.core.encoding import AffineEncoding, SumEncoding, WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.matrix import WeightLayout
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.spec import PerBlock, PerTensor
from ptq.passes._guards import avoid_float_fusion, keep_blocks, keep_float, take_over
from ptq.passes.graph import add_initializer
from ptq.passes.linear import bias_add, name_of
from ptq.passes.lowered_layer import LoweredLayer, along_blocks
from ptq.passes.normalize import INT4_OPSET
from ptq.passes.packing import BYTE, PACKED_BITS, PACKING_OPSET, CodeStream
from ptq.passes.pieces import cut
from ptq.passes.placement import Placement
from ptq.passes.stored import StoredWeight, value_in
from ptq.passes.tables import Table

ON_CODES = frozenset({"Pad", "SpaceToDepth"})
"""Moving nodes that onnxruntime does not pull through Q/DQ pairs: written on the codes themselves."""

INT4_BITS = 4
"""Word length of codes that are stored as int4."""

STREAM_LIMIT = 1 << 24
"""Codes that are unpacked at once when the session opens; measured, 150 MiB on the way at 3 bits, 230 MiB at 7."""


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
        placement: Which nodes run on integers.
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
        placement: Which nodes run on integers.
        compact: Store codes at their word length; without it they are plain int8 and can be rewritten.

    Returns:
        Where each layer went.
    """
    lowering = _Lowering(model.graph, plan, placement, compact)
    lowering.activations()
    layers = {layer.name: lowering.weight(layer) for layer in placement.layers}
    for table in placement.tables:
        if table.name in plan.tables:
            lowering.table(table)
    for weight in placement.stored:
        if weight.name in plan.stored:
            lowering.stored(model, weight)
    lowering.unpack()
    avoid_float_fusion(model.graph, lowering.integer)
    keep_float(model.graph, lowering.integer)
    keep_blocks(model.graph)
    common.RemoveUnusedNodesPass()(model)
    return layers


Store = Callable[[str, NDArray[Any]], ir.TensorProtocol]
"""Where a new constant's numbers go."""


def lower_one_by_one(
    model: ir.Model, placement: Placement, plans: Iterable[tuple[LinearLayer, QuantPlan]], store: Store
) -> None:
    """Write weights into a graph, in place, each as soon as its plan is there.

    Args:
        model: The graph that `placement` was made from; activations stay float.
        placement: Its layers.
        plans: Each layer with a plan that holds it.
        store: Where the codes go.
    """
    lowering = _Lowering(model.graph, QuantPlan({}, {}, {}), placement, store=store)
    for layer, plan in plans:
        lowering.plan = plan
        lowering.weight(layer)
    lowering.unpack()
    avoid_float_fusion(model.graph, lowering.integer)
    keep_blocks(model.graph)
    common.RemoveUnusedNodesPass()(model)


@dataclass
class _Lowering:
    graph: ir.Graph
    plan: QuantPlan
    placement: Placement
    compact: bool = True
    store: Store | None = None
    scales: dict[tuple[bytes, bytes, str], tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    decoded: dict[tuple[str, bytes], ir.Value] = field(default_factory=dict)
    streams: dict[int, list[CodeStream]] = field(default_factory=dict)
    first: ir.Node | None = None

    def __post_init__(self) -> None:
        nodes = list(self.graph)
        self.values = {str(v.name): v for v in self.graph.inputs} | {
            str(v.name): v for n in nodes for v in n.outputs if v.name
        }
        self.names = set(self.values) | set(self.graph.initializers)
        for node in self.graph.all_nodes():  # what bodies call their own must not be taken either
            self.names |= {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}
        # By identity: a graph output's producer is renamed on the way.
        self.integer = {node for node in nodes if name_of(node) in self.placement.integer_nodes}

    def activations(self) -> None:
        """Put a Q/DQ pair behind every value that has a grid, and point its readers at the right side of it."""
        for name, params in self.plan.activations.items():
            value = self.values[name]
            producer = value.producer()
            if producer is not None and producer.op_type in ON_CODES and producer in self.integer:
                self._move_on_codes(producer, params)
            else:
                self._insert_pair(value, params)

    def weight(self, layer: LinearLayer) -> LoweredLayer:
        """Replace the float weight and bias of a layer by codes."""
        node = self.values[layer.name].producer()
        assert node is not None  # a layer is named after a node's output
        decoded = self._decoded_weight(layer, self.plan.weights[layer.name])
        node.replace_input_with(layer.weight_index, decoded)
        bias = self._bias(layer, node)
        codes, scale = (_root(value) for value in decoded.producer().inputs[:2])  # type: ignore[union-attr]
        return LoweredLayer(
            _name_at(_decoder_of(node.inputs[1 - layer.weight_index]), 0) or layer.source,
            codes,
            scale,
            _name_at(decoded.producer(), 2) or None,
            None if bias is None else _name_at(_decoder_of(bias), 0) or str(bias.name),
            None if bias is None else _name_at(_decoder_of(bias), 1) or None,
            layer.layout,
        )

    def table(self, table: Table) -> None:
        """Pick rows of codes and their scales instead of floats.

        Before: y = Gather(table, i)
        After:  y = Mul(Cast(Gather(codes, i)), Cast(Gather(scales, i))), scales of 16 bits where these hold them
        """
        encoding, name = self.plan.tables[table.name], table.name
        codes = self._stored(f"{name}_quantized", encoding.codes, encoding.params.spec.num_bits)
        scale = self._initializer(f"{name}_scale", _half(encoding.params.scale).reshape(-1, 1))
        for reader in table.readers:
            node = self.values[reader].producer()
            assert node is not None  # a reader is named after its output
            index, shape = node.inputs[1], node.outputs[0].shape
            rows = self._node("Gather", [codes, index], f"{reader}_codes", ir.DataType.INT8, shape)
            wide = self._node("Cast", [rows], f"{reader}_wide", ir.DataType.FLOAT, shape, {"to": 1})
            short = self._node("Gather", [scale, index], f"{reader}_scale", scale.dtype, None)
            steps = self._node("Cast", [short], f"{reader}_step", ir.DataType.FLOAT, None, {"to": 1})
            product = self._node("Mul", [wide, steps], f"{reader}_row", ir.DataType.FLOAT, shape)
            made = [value.producer() for value in (rows, wide, short, steps, product)]
            self.graph.insert_before(node, [each for each in made if each is not None])
            take_over(node.outputs[0], product)
            self.values[reader] = product
            self.first = made[0] if self.first is node else self.first
            self.graph.remove(node, safe=True)

    def stored(self, model: ir.Model, weight: StoredWeight) -> None:
        """Let float kernels, of bodies too, read codes times scales that are computed in front of everything."""
        encoding, value = self.plan.stored[weight.name], value_in(model, weight.name)
        codes = weight.to_tensor(encoding.codes)
        stored = self._stored(f"{weight.name}_quantized", codes, encoding.params.spec.num_bits)
        decoded = self._multiplied(weight.name, stored, weight.along(encoding.params.scale))
        ir.convenience.replace_all_uses_with(value, decoded)
        if value.is_initializer() and value.graph is not None:
            del value.graph.initializers[weight.name]

    def _bias(self, layer: LinearLayer, node: ir.Node) -> ir.Value | None:
        match self.plan.biases.get(layer.name):
            case BiasEncoding(codes, scale):
                # Without a zero point: it is 0 by definition, and some runtimes reject one of type int32.
                node.resize_inputs(3)
                stored = self._initializer(f"{layer.name}_bias_quantized", codes)
                decoded = self._dequantized(f"{layer.name}_bias", stored, scale, None, 0)
                node.replace_input_with(2, decoded)
                return decoded
            case FloatBias(values) if layer.op_type != "MatMul":
                stored = self._initializer(f"{layer.name}_bias", values)
                node.resize_inputs(3)
                node.replace_input_with(2, stored)
                return stored
            case FloatBias(values):
                add, stored = bias_add(node), self._initializer(f"{layer.name}_bias", values)
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
        codes = self._node("QuantizeLinear", [within, scale, zero], f"{name}_q", zero.dtype, value.shape)
        back = self._node("DequantizeLinear", [codes, scale, zero], f"{name}_dq", ir.DataType.FLOAT, value.shape)
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

    def _clipped(self, value: ir.Value, params: QuantParams) -> ir.Value:
        """Short words have no type of their own: a QuantizeLinear to bytes has to find values in their range."""
        spec = params.spec
        if spec.num_bits == BYTE:
            return value
        low, high = ((code - int(params.zero_point)) * params.scale for code in spec.limits)
        name = str(value.name)
        ends = [
            self._initializer(f"{name}_{key}", np.asarray(end, np.float32))
            for key, end in (("low", low), ("high", high))
        ]
        return self._node("Clip", [value, *ends], f"{name}_clipped", ir.DataType.FLOAT, value.shape)

    def _become_output(self, value: ir.Value, back: ir.Value) -> None:
        """The decoded value takes the name and place of a graph output."""
        name = str(value.name)
        outputs = self.graph.outputs
        outputs[list(outputs).index(value)] = back
        value.name = self._fresh(f"{name}_float")
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
        moved.outputs[0].name = self._fresh(f"{name}_q")
        moved.outputs[0].type, moved.outputs[0].shape = zero.type, node.outputs[0].shape
        back = ir.Node("", "DequantizeLinear", [moved.outputs[0], scale, zero])
        self.graph.insert_before(node, [moved, back])
        take_over(node.outputs[0], back.outputs[0])
        self.graph.remove(node, safe=True)

    def _grid(self, name: str, params: QuantParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point as initializers; equal grids are stored once."""
        key = (params.scale.tobytes(), params.zero_point.tobytes(), str(params.zero_point.dtype))
        if key not in self.scales:
            self.scales[key] = (
                self._initializer(f"{name}_scale", np.asarray(params.scale, np.float32).reshape(())),
                self._initializer(f"{name}_zero_point", np.asarray(params.zero_point).reshape(())),
            )
        return self.scales[key]

    def _decoded_weight(self, layer: LinearLayer, encoding: WeightEncoding) -> ir.Value:
        codes = layer.layout.to_tensor(encoding.codes)
        axis = layer.layout.out_axis
        content = hashlib.sha256(np.ascontiguousarray(codes).data)
        content.update(np.ascontiguousarray(encoding.params.scale).data)
        key = (layer.weight, content.digest())
        if key not in self.decoded:  # a weight that several layers share stays shared
            if isinstance(encoding.params.spec.granularity, PerBlock):
                self.decoded[key] = self._in_blocks(layer, encoding, encoding.params.spec.granularity.block_size)
                return self.decoded[key]
            per_tensor = isinstance(encoding.params.spec.granularity, PerTensor)
            # onnxruntime's QGemm wants to see the zero points, its convolutions do without.
            zero = encoding.params.zero_point if layer.op_type == "Gemm" else None
            stored = self._stored_weight(f"{layer.weight}_quantized", layer.layout, encoding)
            if layer.source in self.plan.activations:
                self.decoded[key] = self._dequantized(
                    layer.weight, stored, encoding.params.scale, zero, None if per_tensor else axis
                )
            else:
                shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
                scale = encoding.params.scale if per_tensor else encoding.params.scale.reshape(shape)
                self.decoded[key] = self._multiplied(layer.weight, stored, scale)
        return self.decoded[key]

    def _in_blocks(self, layer: LinearLayer, encoding: WeightEncoding, size: int) -> ir.Value:
        """Codes with scales per block of inputs, which onnxruntime makes its MatMulNBits.

        Codes of 4 bits stay as they are: that kernel reads them so.
        """
        codes, bits = layer.layout.to_tensor(encoding.codes), encoding.params.spec.num_bits
        name = f"{layer.weight}_quantized"
        short = self.compact and bits == INT4_BITS
        stored = self._initializer(name, codes.astype(ml_dtypes.int4)) if short else self._stored(name, codes, bits)
        scale = self._initializer(f"{layer.weight}_scale", along_blocks(encoding.params.scale, layer.layout))
        inputs = [stored, scale]
        if not encoding.params.spec.symmetric:
            zero = along_blocks(encoding.params.zero_point, layer.layout)
            inputs.append(self._initializer(f"{layer.weight}_zero", zero.astype(ml_dtypes.int4) if short else zero))
        attributes = {"axis": 1 - layer.layout.out_axis, "block_size": size}
        shape = ir.Shape(codes.shape)
        back = self._node("DequantizeLinear", inputs, f"{layer.weight}_dq", ir.DataType.FLOAT, shape, attributes)
        self._compute_first(back)
        return back

    def _multiplied(self, name: str, codes: ir.Value, scale: NDArray[np.float32]) -> ir.Value:
        """Constant codes times scales.

        onnxruntime evaluates this once and runs its float kernel at full speed; a DequantizeLinear it would evaluate on
        every run.
        """
        wide = self._node("Cast", [codes], f"{name}_wide", ir.DataType.FLOAT, codes.shape, {"to": 1})
        product = self._node(
            "Mul", [wide, self._initializer(f"{name}_scale", scale)], f"{name}_decoded", ir.DataType.FLOAT, codes.shape
        )
        self._compute_first(wide, product)
        return product

    def _stored_weight(self, name: str, layout: WeightLayout, encoding: WeightEncoding) -> ir.Value:
        """The codes of a weight as one int8 tensor."""
        match encoding:
            case AffineEncoding(codes, params):
                return self._stored(name, layout.to_tensor(codes), params.spec.num_bits)
            case SumEncoding(codes):
                return (
                    self._joined(name, layout, encoding)
                    if self.compact
                    else self._initializer(name, layout.to_tensor(codes))
                )
            case never:
                assert_never(never)

    def _joined(self, name: str, layout: WeightLayout, encoding: SumEncoding) -> ir.Value:
        """Words of several lengths, those of one length together; joined once, when the session opens."""
        int8, parts, blocks = ir.DataType.INT8, [], cut(encoding, layout)
        for block in blocks:
            pieces = [self._stored(f"{name}_{piece.num_bits}", piece.codes, piece.num_bits) for piece in block.pieces]
            part = pieces[0]
            if len(pieces) > 1:
                taps = self._node("Concat", pieces, f"{name}_taps", int8, None, {"axis": 2})
                shape = self._initializer(f"{name}_shape", np.array(block.shape, np.int64))
                part = self._node("Reshape", [taps, shape], f"{name}_part", int8, ir.Shape(block.shape))
                self._compute_first(taps, part)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        axis = {"axis": layout.out_axis}
        places = np.argsort(np.concatenate([block.rows for block in blocks])).astype(np.int32)
        sorted_ = self._node("Concat", parts, f"{name}_sorted", int8, ir.Shape(layout.shape), axis)
        index = self._initializer(f"{name}_places", places)
        whole = self._node("Gather", [sorted_, index], name, int8, ir.Shape(layout.shape), axis)
        self._compute_first(sorted_, whole)
        return whole

    def _compute_first(self, *values: ir.Value) -> None:
        """Put what is computed from constants in front of the rest, in the order in which it is written."""
        if self.first is None:
            self.first = self.graph[0]
        self.graph.insert_before(self.first, [node for value in values if (node := value.producer()) is not None])

    def _stored(self, name: str, codes: NDArray[Any], num_bits: int) -> ir.Value:
        """Codes as 8-bit integers to whoever reads them, on disk as short as they are.

        onnxruntime evaluates what decodes a constant when the session opens, before it looks for integer kernels. A
        DequantizeLinear of int4 itself would run in float.
        """
        opset = self.graph.opset_imports.get("", 0)
        if self.compact and num_bits in PACKED_BITS and opset >= PACKING_OPSET:
            streams = self.streams.setdefault(num_bits, [CodeStream(num_bits)])
            if sum(part.size for part in streams[-1].parts) + codes.size > STREAM_LIMIT and streams[-1].parts:
                streams.append(CodeStream(num_bits))
            return streams[-1].add(self._fresh(name), codes)
        if not self.compact or num_bits != INT4_BITS or opset < INT4_OPSET:
            return self._initializer(name, codes)
        packed = self._initializer(f"{name}_int4", codes.astype(ml_dtypes.int4))
        wide = self._node(
            "Cast", [packed], name, ir.DataType.INT8, ir.Shape(codes.shape), {"to": int(ir.DataType.INT8)}
        )
        self._compute_first(wide)
        return wide

    def unpack(self) -> None:
        """Write what decodes packed codes, in front of everything."""
        for streams in self.streams.values():
            for stream in streams:
                stream.write(self.graph)

    def _dequantized(
        self, name: str, codes: ir.Value, scale: NDArray[np.float32], zero: NDArray[Any] | None, axis: int | None
    ) -> ir.Value:
        """Constant codes behind a DequantizeLinear."""
        inputs: Sequence[ir.Value] = [codes, self._initializer(f"{name}_scale", scale)]
        if zero is not None:
            inputs = [*inputs, self._initializer(f"{name}_zero_point", zero)]
        attributes = {} if axis is None else {"axis": axis}
        back = self._node("DequantizeLinear", inputs, f"{name}_dq", ir.DataType.FLOAT, codes.shape, attributes)
        self._compute_first(back)
        return back

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType | None,
        shape: ir.Shape | None,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes or {}, name="")  # in small models names outweigh weights
        out = node.outputs[0]
        out.name, out.shape = self._fresh(name), shape
        if dtype is not None:
            out.dtype = dtype
        return out

    def _initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        value = add_initializer(self.graph, self._fresh(name), array)
        if self.store is not None:
            value.const_value = self.store(str(value.name), array)
        return value

    def _fresh(self, name: str) -> str:
        """A name that is not in use yet."""
        candidate, count = name, 1
        while candidate in self.names:
            candidate, count = f"{name}_{count}", count + 1
        self.names.add(candidate)
        return candidate


def _decoder_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind a value."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _root(value: ir.Value | None) -> str:
    """The initializer behind the operators that widen it."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    return "" if value is None else str(value.name)


def _name_at(node: ir.Node | None, index: int) -> str:
    value = None if node is None or index >= len(node.inputs) else node.inputs[index]
    return "" if value is None else str(value.name)


def _half(scale: NDArray[np.float32]) -> NDArray[Any]:
    """Scales as float16 where it is precise enough: 11 bits, next to words of 8, are."""
    smallest, largest = np.finfo(np.float16).smallest_normal, np.finfo(np.float16).max
    return scale.astype(np.float16) if scale.min() >= smallest and scale.max() <= largest else scale
