"""Questions about a quantized graph: how its constants are decoded, and how far a grid reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.analysis.diff.names import origin, pair_of
from ptq.passes._guards import take_over
from ptq.passes.decoding import decoding_of
from ptq.passes.graph import add_initializer
from ptq.passes.linear import constant

MOVES = frozenset(
    {"Pad", "SpaceToDepth", "DepthToSpace", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
    | {"Slice", "Identity", "Split", "Concat"}
)
"""Operators that move values and compute none: on codes or on decoded values they are the same."""


def decoding(value: ir.Value) -> tuple[int | None, NDArray[Any] | None]:
    """Find how many scales a constant is decoded with, and its codes if they are at hand."""
    found = decoding_of(value)
    if found is None or found.is_table:
        return None, None
    scale = constant(found.scale)
    return (None if scale is None else scale.size), constant(found.codes)


def at_limits(codes: NDArray[np.int32]) -> int:
    """Count the codes that are as large as 32 bits allow, as saturated ones are."""
    ends = np.iinfo(np.int32)
    return int(((codes >= ends.max - 1) | (codes <= ends.min + 1)).sum())


def grid_of(quantizer: ir.Node) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the scale and zero point of a quantizer."""
    scale = constant(quantizer.inputs[1])
    zero = constant(quantizer.inputs[2]) if len(quantizer.inputs) > 2 else None
    return np.asarray(1.0 if scale is None else scale), np.asarray(np.uint8(0) if zero is None else zero)


def same_grid(one: ir.Node, other: ir.Node) -> bool:
    """Whether two quantizers round alike."""
    return all(np.array_equal(a, b) for a, b in zip(grid_of(one), grid_of(other), strict=True))


def limits_of(quantizer: ir.Node) -> tuple[float, float]:
    """Return the smallest and largest value that a grid holds."""
    scale, zero = grid_of(quantizer)
    kind = ir.DataType.from_numpy(zero.dtype)
    signed = kind.is_signed()
    least = -(1 << (kind.bitwidth - 1)) if signed else 0
    codes = np.array([least, least + (1 << kind.bitwidth) - 1], np.float64)
    ends = (codes[:, None] - zero.astype(np.float64).reshape(1, -1)) * scale.astype(np.float64).reshape(1, -1)
    clip = quantizer.inputs[0].producer() if quantizer.inputs[0] is not None else None
    if clip is not None and origin(pair_of(quantizer)[0].outputs[0]) is not quantizer.inputs[0]:
        bounds = [constant(value) for value in clip.inputs[1:3]]
        return float(np.min(bounds[0])), float(np.max(bounds[1]))  # type: ignore[arg-type]
    return float(ends[0].min()), float(ends[1].max())


def _moves_to_floats(node: ir.Node) -> bool:
    """Whether a node moves values that nothing but decoders read, at once or once they are moved again."""
    if node.op_type not in MOVES or node.domain or node.op_type == "Concat":
        return False
    readers = [use.node for out in node.outputs for use in out.uses()]
    decoded = all(reader.op_type == "DequantizeLinear" or _moves_to_floats(reader) for reader in readers)
    return decoded and not any(out.is_graph_output() for out in node.outputs)


def move_floats(graph: ir.Graph) -> None:
    """Write nodes that move codes on decoded values: Q, Pad, DQ becomes Q, DQ, Pad; not where integers read them."""
    floated: dict[ir.Value, ir.Node] = {}
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        producer = None if source is None else source.producer()
        if source is None or producer is None or not _moves_to_floats(node):
            continue
        if producer.op_type == "QuantizeLinear":
            back = ir.node("DequantizeLinear", [source, *producer.inputs[1:]])
            back.outputs[0].name = f"{node.outputs[0].name}?before"
            graph.insert_before(node, back)
            node.replace_input_with(0, back.outputs[0])
            quantizer = producer
        elif source in floated:
            quantizer = floated[source]
        else:
            continue
        if node.op_type == "Pad" and len(node.inputs) > 2 and node.inputs[2] is not None:
            node.replace_input_with(2, add_initializer(graph, f"{node.outputs[0].name}?zero", np.array(0, np.float32)))
        for out in node.outputs:
            floated[out] = quantizer
            out.type = ir.TensorType(ir.DataType.FLOAT)
            for reader in [use.node for use in out.uses() if use.node.op_type == "DequantizeLinear"]:
                take_over(reader.outputs[0], out)
                graph.remove(reader, safe=True)
