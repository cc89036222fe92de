"""Questions about a lowered graph: what encodes and decodes a value, and who reads it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.linear import constant


def decoder(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that a value comes from; None if it comes from elsewhere."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" and len(node.inputs) >= 2 else None


def quantizer(node: ir.Node) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads a node, also behind a Relu or Clip that its range makes redundant."""
    reader = only_reader(node)
    if reader is not None and reader.op_type in ("Relu", "Clip") and not reader.domain:
        end = only_reader(reader)
        return end if end is not None and end.op_type == "QuantizeLinear" and _is_redundant(reader, end) else None
    return reader if reader is not None and reader.op_type == "QuantizeLinear" else None


def only_reader(node: ir.Node) -> ir.Node | None:
    """Return the one node that reads another's first output; None if there are several, or it is a graph output."""
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def is_unsigned(pair: ir.Node) -> bool:
    """Whether a node of a Q/DQ pair has a zero point of type uint8."""
    return len(pair.inputs) > 2 and pair.inputs[2] is not None and pair.inputs[2].dtype == ir.DataType.UINT8


def scalar(value: ir.Value | None) -> float | None:
    """Return the number behind a value that is a constant of one element; None for others."""
    array: NDArray[Any] | None = constant(value)
    return None if array is None or array.size != 1 else float(array.item())


def remove_between(graph: ir.Graph, first: ir.Node, last: ir.Node) -> None:
    """Remove a chain of single readers that nothing reads any more, from its end to its beginning."""
    dead: ir.Node | None = last
    while dead is not None:
        source = None if dead is first else next((v for v in dead.inputs if v is not None and v.producer()), None)
        graph.remove(dead, safe=True)
        dead = None if source is None else source.producer()


def _is_redundant(clip: ir.Node, end: ir.Node) -> bool:
    """Whether codes stay within the clip's interval, up to half a step."""
    scale, zero = (scalar(value) for value in end.inputs[1:3])
    ends = [scalar(value) for value in clip.inputs[1:3]] if clip.op_type == "Clip" else [0.0, None]
    low, high = [*ends, None, None][:2]
    if scale is None or zero is None:
        return False
    above = low is None or -zero * scale >= low - scale / 2
    return above and (high is None or (255 - zero) * scale <= high + scale / 2)
