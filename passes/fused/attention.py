"""Attention with its projections inside, and every mask that onnxruntime's CPU kernel takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.fused.writer import Outputs, Writer
from ptq.passes.linear import constant

ODD = ("do_rotary", "past_present_share_buffer", "rotary_embedding_dim")
RAW, PER_QUERY = 2, 3
"""Axes of a mask that says of each position whether it is looked at: by all queries, or by each."""


def attention(w: Writer) -> Outputs | None:
    """Write projections, scores, mask and mixing; None for rotary positions, shared buffers, and masks not known."""
    heads = w.node.attributes.get_int("num_heads", 0)
    weight, bias = constant(w.input(1)), constant(w.input(2))
    odd = w.input(6) is not None or any(w.node.attributes.get_int(name, 0) for name in ODD)
    lost_bias = w.input(2) is not None and bias is None
    if odd or lost_bias or weight is None or weight.ndim != 2 or not heads:
        return None
    widths = [*w.node.attributes.get_ints("qkv_hidden_sizes", ())] or [weight.shape[1] // 3] * 3
    if len(widths) != 3 or sum(widths) != weight.shape[1] or any(width % heads for width in widths):
        return None
    query, key, value = _projections(w, weight, bias, widths)
    key, value, present = _with_past(w, key, value)
    turned = w.op("Transpose", key, perm=[0, 1, 3, 2])
    scale = w.node.attributes.get_float("scale", 0.0) or (widths[0] // heads) ** -0.5
    scores = w.op("Mul", w.op("MatMul", query, turned), w.constant(scale, "scale"))
    hidden = _hidden(w, scores)
    if hidden is None:
        return None
    chances = w.op("Softmax", w.sum(scores, *hidden, w.input(5)), axis=-1)
    mixed = w.op("Transpose", w.op("MatMul", chances, value), perm=[0, 2, 1, 3])
    return [w.op("Reshape", mixed, w.constant([0, 0, widths[2]], "width", np.int64)), present]


def biases_before(w: Writer) -> Outputs | None:
    """Write biases of query, key and value behind their products, and the attention of those as it is, which is fast.

    None where they do not come out of products.
    """
    bias, sides = constant(w.input(3)), [w.input(index) for index in range(3)]
    widths = [_width(side) for side in sides]
    if bias is None or None in widths or bias.size != sum(width or 0 for width in widths):
        return None
    parts, start = [], 0
    for side, width, name in zip(sides, widths, ("query", "key", "value"), strict=True):
        end = start + (width or 0)
        parts.append(w.op("Add", side, w.constant(bias[start:end], f"{name}_bias")))
        start = end
    settings = {name: each.value for name, each in w.node.attributes.items()}
    inputs, count = [*parts, None, *w.node.inputs[4:]], len(w.node.outputs)
    return [*w.tape.op_multi_out(w.node.op_type, inputs, settings, num_outputs=count, domain=w.node.domain)]


def _width(value: ir.Value | None) -> int | None:
    """Return how many features a product makes that has its weight on the right; None for other values."""
    node = None if value is None else value.producer()
    weight = constant(node.inputs[1]) if node is not None and node.op_type == "MatMul" and not node.domain else None
    return weight.shape[1] if weight is not None and weight.ndim == 2 else None


def _projections(
    w: Writer, weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]], bias: object, widths: list[int]
) -> list[ir.Value]:
    """Write query, key and value, [batch, heads, positions, width] each."""
    heads, parts, start = w.node.attributes.get_int("num_heads", 0), [], 0
    for width, name in zip(widths, ("query", "key", "value"), strict=True):
        at = slice(start, start + width)
        part = w.op("MatMul", w.input(0), w.constant(weight[:, at], f"{name}_weight"))
        part = part if bias is None else w.op("Add", part, w.constant(np.asarray(bias)[at], f"{name}_bias"))
        split = w.constant([0, 0, heads, width // heads], f"{name}_heads", np.int64)
        parts.append(w.op("Transpose", w.op("Reshape", part, split), perm=[0, 2, 1, 3]))
        start += width
    return parts


def _with_past(w: Writer, key: ir.Value, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Write cached keys and values before the new ones, and all of them stacked if somebody reads that."""
    past = w.input(4)
    if past is not None:
        parts = [w.op("Gather", past, w.constant(index, "part", np.int64), axis=0) for index in (0, 1)]
        key, value = (w.op("Concat", old, new, axis=2) for old, new in zip(parts, (key, value), strict=True))
    if not w.is_read(1):
        return key, value, None
    first = w.constant([0], "stack", np.int64)
    return key, value, w.op("Concat", *(w.op("Unsqueeze", part, first) for part in (key, value)), axis=0)


def _hidden(w: Writer, scores: ir.Value) -> list[ir.Value] | None:
    """Write what is added to scores of positions that are not looked at; None for masks that are not known."""
    terms = [_later(w, scores)] if w.node.attributes.get_int("unidirectional", 0) else []
    mask = w.input(3)
    if mask is None:
        return terms
    shape = w.shape(mask)
    if shape is None or len(shape) not in (1, RAW, PER_QUERY):
        return None
    shown = _between(w, mask, scores) if len(shape) == 1 else w.op("Cast", mask, to=int(ir.DataType.FLOAT))
    if shown is None:
        return None
    filter_value = w.constant(w.node.attributes.get_float("mask_filter_value", -10000.0), "masked")
    hidden = w.op("Mul", w.op("Sub", w.constant(1.0, "full"), shown), filter_value)
    axes = w.constant([1] if len(shape) == PER_QUERY else [1, 2], "axes", np.int64)
    return [*terms, w.op("Unsqueeze", hidden, axes)]


def _later(w: Writer, scores: ir.Value) -> ir.Value:
    """Write float32's lowest number, below all that masks add, where a position comes after the one that asks.

    Shape [queries, positions].
    """
    ends = w.constant([2], "from", np.int64), w.constant([4], "to", np.int64)
    sizes = w.op("Slice", w.op("Shape", scores), *ends)
    ones = w.op("Add", w.op("ConstantOfShape", sizes), w.constant(1.0, "later"))
    above = w.constant(1, "above", np.int64)
    if w.input(4) is not None:
        past = w.op("Sub", w.extent(scores, 3), w.extent(scores, 2))
        above = w.op("Add", w.op("Squeeze", past, w.constant([0], "only", np.int64)), above)
    return w.op("Mul", w.op("Trilu", ones, above, upper=1), w.constant(np.finfo(np.float32).min, "hidden"))


def _between(w: Writer, lengths: ir.Value, scores: ir.Value) -> ir.Value | None:
    """Write 1 where a position lies before the end of its text, and not before its start, [batch, positions].

    The numbers are ends, and behind them starts if there are twice as many numbers as texts; None if nobody knows.
    """
    source, shape = w.shape(w.input(0)), w.shape(lengths)
    if source is None or shape is None or source[0] is None or shape[0] is None:
        return None
    batch, last, none = w.extent(w.input(0), 0), w.constant([1], "column", np.int64), w.constant([0], "none", np.int64)
    count = w.op("Squeeze", w.extent(scores, 3), none)
    first, step = w.constant(0, "first", np.int64), w.constant(1, "step", np.int64)
    positions = w.op("Range", first, count, step)
    numbers = w.op("Cast", lengths, to=int(ir.DataType.INT64))
    ends = w.op("Unsqueeze", w.op("Slice", numbers, none, batch), last)
    within = w.op("Cast", w.op("Less", positions, ends), to=int(ir.DataType.FLOAT))
    if shape[0] != 2 * source[0]:
        return within
    starts = w.op("Slice", numbers, batch, w.op("Add", batch, batch))
    begun = w.op("GreaterOrEqual", positions, w.op("Unsqueeze", starts, last))
    return w.op("Mul", within, w.op("Cast", begun, to=int(ir.DataType.FLOAT)))
