"""Packing of codes that no type of ONNX holds into full bytes, and the standard operators that unpack them.

All layers of one word length share a stream of bytes, see `ptq.codecs.bitplanes`: the operators that unpack it are
written once, and one Split hands every layer its part. onnxruntime evaluates all of it when the session opens, before
it looks for integer kernels.

Bytes are unpacked by table: row r of a plane's table holds the fields of byte r at their place in the word, and the
topmost plane carries the sign, so that the rows of all planes only have to be OR-ed. onnxruntime keeps every result
until all constants are evaluated; operators on whole streams are few for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.codecs.bitplanes import BYTE, field_divisors, field_values, pack, planes
from ptq.passes.graph import add_initializer

PACKED_BITS = (1, 2, 3, 5, 6, 7)
"""Word lengths that are stored this way; 4 and 8 bits are types of ONNX."""

PACKING_OPSET = 18
"""BitwiseOr."""


@dataclass
class CodeStream:
    """Stream of the codes of several layers, under construction.

    Attributes:
        num_bits: Word length of the codes.
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
        reshape = ir.node("Reshape", [None, None], name="")
        value = reshape.outputs[0]
        value.name, value.shape, value.type = name, ir.Shape(codes.shape), ir.TensorType(ir.DataType.INT8)
        self.parts.append(codes)
        self.places.append(value)
        return value

    def write(self, graph: ir.Graph) -> None:
        """Put the bytes and the nodes that unpack them at the beginning of a graph.

        Layers of other streams have to be read by the graph already: only then are their names known to be taken.

        Args:
            graph: Changed in place; not empty.

        Raises:
            ValueError: A code does not fit into the word length, or its codes have a type of ONNX.
        """
        if self.num_bits not in PACKED_BITS:
            raise ValueError(f"codes of {self.num_bits} bits are not packed; {PACKED_BITS} are")
        writer = _Writer(graph, _names(graph) | {str(value.name) for value in self.places})
        sizes = [part.size for part in self.parts]
        if padding := -sum(sizes) % BYTE:  # whole groups of eight codes: then all planes have one shape
            sizes.append(padding)
        flat = np.concatenate([*(part.reshape(-1) for part in self.parts), np.zeros(padding, np.int8)])
        whole = [writer.node("Reshape", [self._groups(writer, flat), writer.constant(np.array([-1], np.int64))])]
        if len(sizes) > 1:
            whole = writer.nodes("Split", [*whole, writer.constant(np.array(sizes, np.int64))], len(sizes))
        for value, part, source in zip(self.places, self.parts, whole, strict=False):  # the padding has no place
            node = value.producer()
            if node is None:
                raise RuntimeError(f"{value.name} lost its node")
            node.replace_input_with(0, source)
            node.replace_input_with(1, writer.constant(np.array(part.shape, np.int64)))
            writer.made.append(node)
        graph.insert_before(graph[0], writer.made)

    def _groups(self, writer: _Writer, codes: NDArray[np.int8]) -> ir.Value:
        """Arrange codes in groups of eight. Shape [size / 8, 2, 2, 2]."""
        packed = pack(codes, self.num_bits)
        ends = [writer.constant(np.array(end, np.int32)) for end in (0, 1 << BYTE, 1)]
        every_byte = writer.node("Range", ends)
        groups, start = None, 0
        for width, shift in planes(self.num_bits):
            # A byte holds 2, 4 or 8 fields: one, two or three of the twos come from the table, the rest are bytes.
            inner = [2] * ((BYTE // width).bit_length() - 1)
            outer = [2] * (3 - len(inner))
            stop = start + codes.size * width // BYTE
            shape = np.array([-1] + [1] * len(inner), np.int64)
            column = writer.node("Reshape", [every_byte, writer.constant(shape)])
            places = writer.node("Div", [column, writer.constant(field_divisors(width).reshape(inner))])
            fields = writer.node("Mod", [places, writer.constant(np.array(1 << width, np.int32))])
            table = writer.node("Gather", [writer.constant(field_values(width, shift, self.num_bits)), fields])
            rows = writer.node("Cast", [writer.constant(packed[start:stop].reshape(-1, *outer))], to=ir.DataType.INT32)
            plane = writer.node("Gather", [table, rows])
            groups = plane if groups is None else writer.node("BitwiseOr", [groups, plane])
            start = stop
        if groups is None:
            raise RuntimeError(f"{self.num_bits} bits have no planes")
        return groups


@dataclass
class _Writer:
    """Writer of the nodes and constants of one stream, not yet in the graph.

    In small models names outweigh weights: those of values are short, and those of nodes are empty, because onnx-ir
    makes one up for a node that has none.
    """

    graph: ir.Graph
    taken: set[str]
    made: list[ir.Node] = field(default_factory=list)
    constants: dict[tuple[bytes, str], ir.Value] = field(default_factory=dict)
    count: int = 0

    def node(self, op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        """Make a node with one output."""
        return self.nodes(op_type, inputs, 1, **attributes)[0]

    def nodes(self, op_type: str, inputs: Sequence[ir.Value], num_outputs: int, **attributes: int) -> list[ir.Value]:
        """Make a node with numbered outputs."""
        node = ir.node(op_type, inputs, attributes, num_outputs=num_outputs, name="")
        for value in node.outputs:
            value.name = self._name()
        self.made.append(node)
        return list(node.outputs)

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Make an initializer; equal ones are stored once."""
        key = array.tobytes(), f"{array.dtype}{array.shape}"
        if key not in self.constants:
            self.constants[key] = add_initializer(self.graph, self._name(), array)
        return self.constants[key]

    def _name(self) -> str:
        """Return a name that is not in use yet."""
        while (name := f"p{self.count}") in self.taken:
            self.count += 1
        self.taken.add(name)
        return name


def _names(graph: ir.Graph) -> set[str]:
    """Collect all names that a graph and the bodies of its control flow use."""
    values = [value for body in (graph, *graph.subgraphs()) for value in (*body.inputs, *body.initializers.values())]
    values += [value for node in graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None]
    return {str(value.name) for value in values}
