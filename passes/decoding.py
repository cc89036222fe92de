"""Constants of a quantized graph: where they are, how they are decoded, and their numbers.

Only what decodes a constant is read from the graph; the numbers onnxruntime computes, as it does when a session opens,
so that every way to store codes is read by the one that runs them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.models.draws import RANDOM
from ptq.models.sessions import run, session_of
from ptq.passes.infer_shapes import exposed


@dataclass(frozen=True)
class Decoding:
    """Decoding of constant codes: real = scale * (code - zero), or real = table[code].

    Attributes:
        codes: Integers.
        scale: Reals per code, or a table of reals.
        zero: Zero points, or None.
        node: Node that decodes them.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    node: ir.Node

    @property
    def is_table(self) -> bool:
        """Whether the codes are places in a table."""
        return self.node.op_type == "Gather"

    @property
    def axis(self) -> int | None:
        """Axis along which every position has a scale, if a DequantizeLinear says so."""
        many = self.scale.shape is not None and len(self.scale.shape) == 1
        return self.node.attributes.get_int("axis", 1) if many and self.node.op_type == "DequantizeLinear" else None

    @property
    def block_size(self) -> int:
        """Number of neighbors that share a scale; 0 where they do so along whole axes."""
        return self.node.attributes.get_int("block_size", 0)


def constants(graph: ir.Graph) -> dict[ir.Value, bool]:
    """Find the values that do not depend on an input -> whether they come out of codes."""
    inputs = set(graph.inputs)
    fixed = {value: False for value in graph.initializers.values() if value not in inputs}
    for node in graph:
        sources = [value for value in node.inputs if value is not None]
        kinds = {attribute.type for attribute in node.attributes.values()}
        if (
            kinds & {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            or node.op_type in RANDOM
            or not all(value in fixed for value in sources)
        ):
            continue
        widens = node.op_type == "Cast" and sources and sources[0].dtype is not None and sources[0].dtype.is_integer()
        decodes = node.op_type == "DequantizeLinear" or widens or any(fixed[value] for value in sources)
        fixed |= dict.fromkeys(node.outputs, bool(decodes))
    return fixed


def arrays_of(
    model: ir.Model, values: Collection[ir.Value], custom_ops: Sequence[str | Path] = ()
) -> dict[ir.Value, NDArray[Any]]:
    """Compute the numbers of values that depend on constants alone.

    Args:
        model: Not modified.
        values: Values of its graph.
        custom_ops: Libraries that computing them needs.
    """
    arrays = {value: value.const_value.numpy() for value in values if value.const_value is not None}
    rest = sorted(set(values) - arrays.keys(), key=lambda value: str(value.name))
    if not rest:
        return arrays
    names = [str(value.name) for value in rest]
    part = exposed(model, names)
    part.graph.inputs.clear()
    with session_of(part, custom_ops=custom_ops, optimization="none") as session:
        return arrays | dict(zip(rest, run(session, {}, names), strict=True))


def decoding_of(value: ir.Value | None) -> Decoding | None:
    """Find what makes a value of codes; None if it is made otherwise."""
    node = None if value is None else value.producer()
    if node is None or node.domain or len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    if node.op_type == "DequantizeLinear":
        return Decoding(node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None, node)
    if node.op_type == "Gather" and node.inputs[0].dtype == ir.DataType.FLOAT and node.inputs[0].is_initializer():
        return Decoding(node.inputs[1], node.inputs[0], None, node)
    wide = node.inputs[0].producer() if node.op_type == "Mul" else None
    if wide is None or wide.op_type != "Cast" or wide.inputs[0] is None:
        return None
    return Decoding(wide.inputs[0], node.inputs[1], None, node)


@dataclass(frozen=True)
class PickedRows:
    """Rows picked of a table: Mul(Cast(Gather(codes, i)), Cast(Gather(scales, i))).

    Attributes:
        codes: Codes of all rows.
        scale: Scale of each row.
        index: Rows that are picked.
    """

    codes: ir.Value
    scale: ir.Value
    index: ir.Value


def picked_rows(node: ir.Node) -> PickedRows | None:
    """Find codes, scales and index that a node picks rows by; None if it does something else."""
    parts = []
    for value in node.inputs if node.op_type == "Mul" else ():
        cast = None if value is None else value.producer()
        gather = None if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None else cast.inputs[0].producer()
        if gather is None or gather.op_type != "Gather" or gather.inputs[0] is None or gather.inputs[1] is None:
            return None
        parts.append((gather.inputs[0], gather.inputs[1]))
    if len(parts) != 2 or parts[0][1] is not parts[1][1]:
        return None
    return PickedRows(parts[0][0], parts[1][0], parts[0][1])
