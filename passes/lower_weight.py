"""Lowering of weights to constants, as short on disk as their storage says, and to what decodes them at load.

onnxruntime evaluates what is computed from constants before it looks for integer kernels, so that to them every weight
is an int8 tensor behind a DequantizeLinear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.encoding import IntegerWeight, LookupWeight, WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.matrix import WeightLayout
from ptq.core.spec import PerBlock, PerTensor
from ptq.core.storage import Alphabet, Words
from ptq.core.widths import Widths
from ptq.passes.graph_writer import GraphWriter
from ptq.passes.lowered_layer import along_blocks
from ptq.passes.normalize import INT4_OPSET
from ptq.passes.packing import PACKED_BITS, PACKING_OPSET, CodeStream
from ptq.passes.pieces import cut

INT4_BITS = 4
"""Word length of codes that are stored as int4."""

STREAM_LIMIT = 1 << 24
"""Codes that are unpacked at once when the session opens; measured, 150 MiB on the way at 3 bits, 230 MiB at 7."""

ROWS = -1
"""Axis in the key of rows that are not decoded."""

INT8, FLOAT = ir.DataType.INT8, ir.DataType.FLOAT


@dataclass
class WeightWriter:
    """Writer of weights into one graph.

    Attributes:
        writer: Writer of nodes and constants into that graph.
        compact: Store codes at their word length; without it they are plain int8 and can be rewritten.
        tied: Layer -> table whose rows are its output features: one has the codes of the other.
    """

    writer: GraphWriter
    compact: bool = True
    tied: Mapping[str, str] = field(default_factory=dict)
    streams: dict[int, list[CodeStream]] = field(default_factory=dict)
    decoded: dict[tuple[str, int, bytes], ir.Value] = field(default_factory=dict)
    blocks: dict[str, list[ir.Value]] = field(default_factory=dict)
    tables: dict[tuple[str, bytes], ir.Value] = field(default_factory=dict)

    def of_layer(self, layer: LinearLayer, weight: WeightEncoding, *, on_codes: bool) -> ir.Value:
        """Write the decoded weight of a layer; one that several layers share stays shared.

        Args:
            layer: Layer that reads it.
            weight: Weight of the layer.
            on_codes: Whether its input is codes, so that a kernel may multiply integers.
        """
        key = (layer.weight, layer.layout.out_axis, _digest(weight))
        if key not in self.decoded:
            self.decoded[key] = self._of_layer(layer, weight, on_codes=on_codes)
        return self.decoded[key]

    def _of_layer(self, layer: LinearLayer, weight: WeightEncoding, *, on_codes: bool) -> ir.Value:
        if isinstance(weight, LookupWeight):
            return self._stored(layer, weight)
        granularity = weight.params.spec.granularity
        if isinstance(granularity, PerBlock):
            return self._in_blocks(layer, weight, granularity.block_size)
        per_tensor, axis = isinstance(granularity, PerTensor), layer.layout.out_axis
        codes = self._stored(layer, weight)
        if on_codes:
            # onnxruntime's QGemm wants to see the zero points, its convolutions do without.
            zero = weight.params.zero_point if layer.op_type == "Gemm" else None
            return dequantized(self.writer, layer.weight, (codes, weight.scale, zero), None if per_tensor else axis)
        shape = [-1 if i == axis else 1 for i in range(len(layer.layout.shape))]
        return self.multiplied(layer.weight, codes, weight.scale if per_tensor else weight.scale.reshape(shape))

    def _stored(self, layer: LinearLayer, weight: WeightEncoding) -> ir.Value:
        """Write codes or reals of a layer; those of a tied table once, row by row, and turned at load."""
        table = self.tied.get(layer.name) if self.compact else None
        if table is None and isinstance(weight, LookupWeight):
            return self.reals(f"{layer.weight}_decoded", layer.layout, weight)
        if table is None and isinstance(weight, IntegerWeight):
            return self.codes(f"{layer.weight}_quantized", layer.layout, weight)
        rows = self.rows(str(table), weight)
        if layer.layout.out_axis == 0:
            return rows
        kind = rows.dtype, ir.Shape(layer.layout.shape)
        turned = self.writer.node("Transpose", [rows], f"{layer.weight}_turned", kind, {"perm": (1, 0)})
        self.writer.compute_first(turned)
        return turned

    def rows(self, table: str, weight: WeightEncoding) -> ir.Value:
        """Write the rows of a table, codes or reals, once for all that read them."""
        key = (table, ROWS, _digest(weight))
        if key not in self.decoded or not self.compact:
            layout = WeightLayout(0, weight.shape)
            self.decoded[key] = (
                self.reals(f"{table}_decoded", layout, weight)
                if isinstance(weight, LookupWeight)
                else self.codes(f"{table}_quantized", layout, weight)
            )
        return self.decoded[key]

    def codes(
        self, name: str, layout: WeightLayout, weight: IntegerWeight, shape: Sequence[int] | None = None
    ) -> ir.Value:
        """Write the codes of a weight as one int8 tensor to whoever reads them.

        Args:
            name: Name of the tensor.
            layout: Layout by which the matrix of codes becomes a tensor.
            weight: Weight that has the codes.
            shape: Shape of the tensor, where it is not that of the layout.
        """
        tensor = layout.to_tensor(weight.codes).reshape(shape or layout.shape)
        if not self.compact:
            return self.writer.initializer(name, tensor)
        match weight.storage:
            case Words(lengths):
                if isinstance(lengths, Widths):
                    return self._shaped(name, "whole", self._joined(name, layout, weight, lengths), tensor.shape)
                return self.words(name, tensor, lengths)
            case Alphabet(levels) as alphabet:
                return self._looked_up(name, alphabet.places(tensor), levels)
            case never:
                assert_never(never)

    def reals(
        self, name: str, layout: WeightLayout, weight: LookupWeight, shape: Sequence[int] | None = None
    ) -> ir.Value:
        """Write a weight of a table as one float tensor; arguments as those of `codes`."""
        tensor = layout.to_tensor(weight.indices).reshape(shape or layout.shape)
        if not self.compact:
            return self.writer.initializer(name, weight.table[tensor])
        return self._looked_up(name, tensor, weight.table)

    def multiplied(self, name: str, codes: ir.Value, scale: NDArray[np.float32]) -> ir.Value:
        """Multiply constant codes by scales.

        onnxruntime evaluates this once and runs its float kernel at full speed; a DequantizeLinear it would evaluate on
        every run.
        """
        kind = FLOAT, codes.shape
        wide = self.writer.node("Cast", [codes], f"{name}_wide", kind, {"to": int(FLOAT)})
        steps = self.writer.initializer(f"{name}_scale", scale)
        product = self.writer.node("Mul", [wide, steps], f"{name}_decoded", kind)
        self.writer.compute_first(wide, product)
        return product

    def words(self, name: str, codes: NDArray[Any], num_bits: int) -> ir.Value:
        """Write codes as 8-bit integers to whoever reads them, on disk as short as they are.

        A DequantizeLinear of int4 itself would run in float.
        """
        opset = self.writer.graph.opset_imports.get("", 0)
        if self.compact and not num_bits:
            return self._zeros(name, codes.shape)
        if self.compact and num_bits in PACKED_BITS and opset >= PACKING_OPSET:
            return self._stream(num_bits, codes.size).add(self.writer.fresh(name), codes)
        if not self.compact or num_bits != INT4_BITS or opset < INT4_OPSET:
            return self.writer.initializer(name, codes)
        packed = self.writer.initializer(f"{name}_int4", codes.astype(ml_dtypes.int4))
        wide = self.writer.node("Cast", [packed], name, (INT8, ir.Shape(codes.shape)), {"to": int(INT8)})
        self.writer.compute_first(wide)
        return wide

    def unpack(self) -> None:
        """Write what decodes packed codes, in front of everything; to be called once, at the end."""
        for streams in self.streams.values():
            for stream in streams:
                stream.write(self.writer.graph)

    def _stream(self, num_bits: int, count: int) -> CodeStream:
        """Return the stream that takes some more codes."""
        streams = self.streams.setdefault(num_bits, [CodeStream(num_bits)])
        if sum(part.size for part in streams[-1].parts) + count > STREAM_LIMIT and streams[-1].parts:
            streams.append(CodeStream(num_bits))
        return streams[-1]

    def _in_blocks(self, layer: LinearLayer, weight: IntegerWeight, size: int) -> ir.Value:
        """Write codes with scales per block of inputs, which onnxruntime makes its MatMulNBits.

        Codes of 4 bits stay as they are: that kernel reads them so.
        """
        writer, name = self.writer, f"{layer.weight}_quantized"
        short = self.compact and weight.storage == Words(INT4_BITS)
        if short:
            stored = writer.initializer(name, layer.layout.to_tensor(weight.codes).astype(ml_dtypes.int4))
        else:
            stored = self.codes(name, layer.layout, weight)
        inputs = [stored, writer.initializer(f"{layer.weight}_scale", along_blocks(weight.scale, layer.layout))]
        if not weight.params.spec.symmetric:
            zero = along_blocks(weight.params.zero_point, layer.layout)
            inputs.append(writer.initializer(f"{layer.weight}_zero", zero.astype(ml_dtypes.int4) if short else zero))
        self.blocks[layer.weight] = inputs
        attributes = {"axis": 1 - layer.layout.out_axis, "block_size": size}
        kind = FLOAT, ir.Shape(layer.layout.shape)
        back = writer.node("DequantizeLinear", inputs, f"{layer.weight}_dq", kind, attributes)
        writer.compute_first(back)
        return back

    def _joined(self, name: str, layout: WeightLayout, weight: IntegerWeight, widths: Widths) -> ir.Value:
        """Join words of several lengths, those of one length together; done once, when the session opens."""
        writer, parts, blocks = self.writer, [], cut(weight.codes, widths, layout)
        for block in blocks:
            pieces = [self.words(f"{name}_{piece.num_bits}", piece.codes, piece.num_bits) for piece in block.pieces]
            part = pieces[0]
            if len(pieces) > 1:
                part = writer.node("Concat", pieces, f"{name}_taps", (INT8, None), {"axis": 2})
                writer.compute_first(part)
                part = self._shaped(name, "part", part, block.shape)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        axis, kind = {"axis": layout.out_axis}, (INT8, ir.Shape(layout.shape))
        places = np.argsort(np.concatenate([block.rows for block in blocks])).astype(np.int32)
        sorted_ = writer.node("Concat", parts, f"{name}_sorted", kind, axis)
        whole = writer.node("Gather", [sorted_, writer.initializer(f"{name}_places", places)], name, kind, axis)
        writer.compute_first(sorted_, whole)
        return whole

    def _looked_up(self, name: str, places: NDArray[np.uint8], table: NDArray[Any]) -> ir.Value:
        """Look entries of a table, int8 levels or float32 reals, up by their place; done once, as the session opens."""
        writer, num_bits, shape = self.writer, max((len(table) - 1).bit_length(), 1), ir.Shape(places.shape)
        half = 1 << (num_bits - 1)  # places are signed words; Gather counts negative ones from the end
        words = self.words(f"{name}_places", (places.astype(np.int16) - half).astype(np.int8), num_bits)
        entries = self._table(f"{name}_levels", np.roll(np.pad(table, (0, 2 * half - len(table)), "edge"), -half))
        kind = {"to": int(ir.DataType.INT32)}
        wide = writer.node("Cast", [words], f"{name}_index", (ir.DataType.INT32, shape), kind)
        found = writer.node("Gather", [entries, wide], name, (entries.dtype, shape))
        writer.compute_first(wide, found)
        return found

    def _table(self, name: str, table: NDArray[Any]) -> ir.Value:
        """Write a table as a constant; equal ones are stored once."""
        key = (str(table.dtype), table.tobytes())
        if key not in self.tables:
            self.tables[key] = self.writer.initializer(name, table)
        return self.tables[key]

    def _zeros(self, name: str, shape: Sequence[int]) -> ir.Value:
        """Write codes that are all 0 and lie nowhere."""
        zero = self._table(f"{name}_zero", np.zeros(1, np.int8))
        extents = self.writer.initializer(f"{name}_shape", np.array(shape, np.int64))
        zeros = self.writer.node("Expand", [zero, extents], name, (INT8, ir.Shape(shape)))
        self.writer.compute_first(zeros)
        return zeros

    def _shaped(self, name: str, role: str, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Bring codes into another shape, if they have not got it."""
        if value.shape == ir.Shape(shape):
            return value
        extents = self.writer.initializer(f"{name}_shape", np.array(shape, np.int64))
        shaped = self.writer.node("Reshape", [value, extents], f"{name}_{role}", (INT8, ir.Shape(shape)))
        self.writer.compute_first(shaped)
        return shaped


def dequantized(
    writer: GraphWriter, name: str, grid: tuple[ir.Value, NDArray[np.float32], NDArray[Any] | None], axis: int | None
) -> ir.Value:
    """Write constant codes behind a DequantizeLinear.

    Args:
        writer: Writer into the graph.
        name: Beginning of the names of the constants.
        grid: Codes, scales, and zero points if the reader wants to see them.
        axis: Axis that has scales of its own; None if there is one for all.
    """
    codes, scale, zero = grid
    inputs: Sequence[ir.Value] = [codes, writer.initializer(f"{name}_scale", scale)]
    if zero is not None:
        inputs = [*inputs, writer.initializer(f"{name}_zero_point", zero)]
    attributes = {} if axis is None else {"axis": axis}
    back = writer.node("DequantizeLinear", inputs, f"{name}_dq", (FLOAT, codes.shape), attributes)
    writer.compute_first(back)
    return back


def _digest(weight: WeightEncoding) -> bytes:
    """Compute what tells two weights apart."""
    arrays = (weight.codes, weight.scale) if isinstance(weight, IntegerWeight) else (weight.indices, weight.table)
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    return content.digest()
