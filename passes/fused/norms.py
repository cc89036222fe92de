"""Normalizations with what stands before them: a sum of two values, or of words, places and segments."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.fused.writer import Outputs, Writer

EPSILON = 1e-12
"""Default of the fused operators."""


def skip_norm(w: Writer) -> Outputs | None:
    """Write sum and LayerNormalization; None if somebody reads its mean or deviation."""
    total = _skipped(w, w.input(4))
    return None if w.is_read(1) or w.is_read(2) else [_norm(w, total, w.input(2), w.input(3)), None, None, total]


def skip_rms_norm(w: Writer) -> Outputs | None:
    """Write sum and root-mean-square normalization; None if somebody reads its deviation."""
    if w.is_read(1) or w.is_read(2):
        return None
    total = _skipped(w, w.input(3))
    epsilon = w.node.attributes.get_float("epsilon", EPSILON)
    outcome = w.op("SimplifiedLayerNormalization", total, w.input(2), epsilon=epsilon, axis=-1, stash_type=1)
    return [outcome, None, None, total]


def embed_norm(w: Writer) -> Outputs:
    """Write the sum of words, places and segments, normalized, and the lengths that the mask says."""
    ids, segments = w.input(0), w.input(1)
    places = w.input(8)
    if places is None:
        length = w.op("Gather", w.op("Shape", ids), w.constant(1, "axis", np.int64))
        places = w.op("Range", w.constant(0, "first", np.int64), length, w.constant(1, "step", np.int64))
    total = w.sum(w.op("Gather", w.input(2), ids), w.op("Gather", w.input(3), places))
    total = total if segments is None else w.op("Add", total, w.op("Gather", w.input(4), segments))
    return [_norm(w, total, w.input(5), w.input(6)), _lengths(w, ids) if w.is_read(1) else None, total]


def _skipped(w: Writer, bias: ir.Value | None) -> ir.Value:
    """Write the sum of two values and a bias, which is added to the product among them: it is that layer's."""
    first, second = w.input(0), w.input(1)
    if second is not None and _is_product(second) and not (first is not None and _is_product(first)):
        first, second = second, first
    return w.sum(w.sum(first, bias), second)


def _is_product(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "MatMul" and not node.domain


def _norm(w: Writer, value: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    """Write a LayerNormalization with the node's epsilon."""
    epsilon = w.node.attributes.get_float("epsilon", EPSILON)
    return w.op("LayerNormalization", value, scale, *([] if bias is None else [bias]), epsilon=epsilon, axis=-1)


def _lengths(w: Writer, ids: ir.Value | None) -> ir.Value:
    """Write how many positions of each text the mask leaves; 0 without a mask, as the fused operator says."""
    mask = w.input(7)
    if mask is None:
        zero = ir.tensor(np.zeros(1, np.int32))
        return w.tape.op("ConstantOfShape", [w.extent(ids, 0)], {"value": zero})
    return w.op("ReduceSum", mask, w.constant([1], "positions", np.int64), keepdims=0)
