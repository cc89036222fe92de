"""Codes of 2, 3, 5, 6 and 7 bits as bytes that are full, and the standard operators that unpack them.

A word of b bits is cut into planes of 4, 2 and 1 bits, the binary digits of b; each plane fills bytes on its own, so
that no field crosses a byte. All layers of one word length share a stream of bytes: the operators that unpack it are
written once, and one Split hands every layer its part. onnxruntime evaluates all of it when the session opens, before
it looks for integer kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

PACKED_BITS = (2, 3, 5, 6, 7)
"""Word lengths that are stored this way; 4 and 8 bits are types of ONNX."""

PACKING_OPSET = 18
"""BitwiseAnd, BitwiseOr, and Split into counted parts."""

BYTE = 8


def pack(codes: NDArray[np.int8], num_bits: int) -> NDArray[np.uint8]:
    """Signed codes as full bytes.

    Args:
        codes: Within -2^(b-1) .. 2^(b-1) - 1. Any shape, taken in C order.
        num_bits: Word length b.

    Returns:
        The planes, widest first, each with its own padding of less than a byte. Shape [about size * b / 8].
    """
    words = (codes.reshape(-1).astype(np.int16) + (1 << (num_bits - 1))).astype(np.uint8)
    parts = []
    for width, shift in _planes(num_bits):
        per_byte = BYTE // width
        fields = words >> np.uint8(shift) & np.uint8((1 << width) - 1)
        padded = np.pad(fields, (0, -len(fields) % per_byte)).reshape(-1, per_byte)
        parts.append(np.bitwise_or.reduce(padded << _shifts(width), axis=1))
    return np.concatenate(parts)


def unpack(packed: NDArray[np.uint8], num_bits: int, count: int) -> NDArray[np.int8]:
    """The inverse of `pack`; step by step what the graph does.

    Args:
        packed: Bytes.
        num_bits: Word length.
        count: How many codes.

    Returns:
        Codes. Shape [count].
    """
    words, start = np.zeros(count, np.uint8), 0
    for width, shift in _planes(num_bits):
        stop = start + -(-count // (BYTE // width))
        fields = packed[start:stop, None] >> _shifts(width) & np.uint8((1 << width) - 1)
        words |= fields.reshape(-1)[:count] << np.uint8(shift)
        start = stop
    return (words.astype(np.int16) - (1 << (num_bits - 1))).astype(np.int8)


@dataclass
class CodeStream:
    """Codes of several layers under construction.

    Attributes:
        num_bits: Their word length.
        parts: Codes in the shape of each layer's weight.
        places: Values that stand for them in the graph; `write` gives them producers.
    """

    num_bits: int
    parts: list[NDArray[np.int8]] = field(default_factory=list)
    places: list[ir.Value] = field(default_factory=list)

    def add(self, name: str, codes: NDArray[np.int8]) -> ir.Value:
        """Add a layer.

        Args:
            name: Name of the value that will hold its codes.
            codes: Shape of the weight in the graph.

        Returns:
            The value: int8, not yet produced by any node.
        """
        reshape = ir.node("Reshape", [None, None])
        value = reshape.outputs[0]
        value.name, value.shape, value.type = name, ir.Shape(codes.shape), ir.TensorType(ir.DataType.INT8)
        self.parts.append(codes)
        self.places.append(value)
        return value

    def write(self, graph: ir.Graph) -> None:
        """Put the bytes and the nodes that unpack them at the beginning of a graph."""
        writer = _Writer(graph, f"codes{self.num_bits}")
        sizes = [part.size for part in self.parts]
        flat = np.concatenate([part.reshape(-1) for part in self.parts])
        words = self._words(writer, writer.constant(pack(flat, self.num_bits)), flat.size)
        table = np.arange(-(1 << (self.num_bits - 1)), 1 << (self.num_bits - 1), dtype=np.int8)
        index = writer.node("Cast", [words], {"to": int(ir.DataType.INT32)})
        codes = writer.node("Gather", [writer.constant(table), index])
        whole = [codes]
        if len(sizes) > 1:
            whole = writer.nodes("Split", [codes, writer.constant(np.array(sizes, np.int64))], {"axis": 0}, len(sizes))
        for value, part, source in zip(self.places, self.parts, whole, strict=True):
            node = value.producer()
            if node is None:
                raise RuntimeError(f"{value.name} lost its node")
            node.replace_input_with(0, source)
            node.replace_input_with(1, writer.constant(np.array(part.shape, np.int64)))
            writer.made.append(node)
        graph.insert_before(graph[0], writer.made)

    def _words(self, writer: _Writer, packed: ir.Value, count: int) -> ir.Value:
        """Unsigned words from the planes."""
        words, start = None, 0
        for width, shift in _planes(self.num_bits):
            length = -(-count // (BYTE // width))
            plane = writer.cut(packed, start, start + length)
            column = writer.node("Reshape", [plane, writer.constant(np.array([-1, 1], np.int64))])
            moved = writer.node("BitShift", [column, writer.constant(_shifts(width))], {"direction": "RIGHT"})
            fields = writer.node("BitwiseAnd", [moved, writer.constant(np.array([(1 << width) - 1], np.uint8))])
            flat = writer.cut(writer.node("Reshape", [fields, writer.constant(np.array([-1], np.int64))]), 0, count)
            high = flat
            if shift:
                high = writer.node(
                    "BitShift", [flat, writer.constant(np.array([shift], np.uint8))], {"direction": "LEFT"}
                )
            words = high if words is None else writer.node("BitwiseOr", [words, high])
            start += length
        if words is None:
            raise RuntimeError(f"{self.num_bits} bits have no planes")
        return words


@dataclass
class _Writer:
    """Nodes and constants of one stream, not yet in the graph."""

    graph: ir.Graph
    prefix: str
    made: list[ir.Node] = field(default_factory=list)
    constants: dict[tuple[bytes, str], ir.Value] = field(default_factory=dict)
    count: int = 0

    def node(self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any] | None = None) -> ir.Value:
        """A node with one output."""
        return self.nodes(op_type, inputs, attributes or {}, 1)[0]

    def nodes(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], num_outputs: int
    ) -> list[ir.Value]:
        """A node."""
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs)
        for value in node.outputs:
            value.name = self._name()
        self.made.append(node)
        return list(node.outputs)

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """An initializer; equal ones are stored once."""
        key = array.tobytes(), f"{array.dtype}{array.shape}"
        if key not in self.constants:
            tensor = ir.tensor(array, name=self._name())
            value = ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
            self.constants[key] = value
        return self.constants[key]

    def cut(self, value: ir.Value, start: int, stop: int) -> ir.Value:
        """Elements of a vector."""
        ends = [self.constant(np.array([end], np.int64)) for end in (start, stop)]
        return self.node("Slice", [value, *ends])

    def _name(self) -> str:
        self.count += 1
        return f"{self.prefix}_{self.count}"


def _planes(num_bits: int) -> list[tuple[int, int]]:
    """Width and place of each plane: the binary digits of the word length, widest first and lowest in the word."""
    planes, shift = [], 0
    for width in (4, 2, 1):
        if num_bits & width:
            planes.append((width, shift))
            shift += width
    return planes


def _shifts(width: int) -> NDArray[np.uint8]:
    """Where the fields of a byte begin."""
    return np.arange(0, BYTE, width, dtype=np.uint8)
