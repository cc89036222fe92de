"""Operators that onnxruntime's transformer optimizer has fused, written as standard ones again.

What is fused hides weights, values and normalizations from every other pass. onnxruntime fuses them again where that
is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant, name_of

DOMAIN = "com.microsoft"
FUNCTION_OPSET = 17  # LayerNormalization
SQRT_HALF, SQRT_TWO_OVER_PI, CUBE = np.sqrt(0.5), np.sqrt(2 / np.pi), 0.044715


@dataclass(frozen=True)
class Unfuse(ir.passes.InPlacePass):
    """Replace fused transformer operators of domain com.microsoft.

    Before: Attention, SkipLayerNormalization, EmbedLayerNormalization, BiasGelu, FastGelu, Gelu, QuickGelu
    After:  MatMul, Add, Softmax, LayerNormalization, Gather, Erf, Tanh, ...
    Requires: a standard operator set with LayerNormalization; no cached keys, rotary positions or relative positions.
    Ensures: forms that it does not know stay as they are.
    Preserves float outputs: yes, within rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every operator whose form is known."""
        if model.opset_imports.get("", 0) < FUNCTION_OPSET:
            return ir.passes.PassResult(model, False)
        modified = False
        for node in [node for node in model.graph if node.domain == DOMAIN]:
            write = FORMS.get(node.op_type)
            written = None if write is None else _Writer(model.graph, node)
            outputs = None if write is None or written is None else write(written)
            if written is None or outputs is None:
                continue
            _put(model.graph, node, written.tape, outputs)
            modified = True
        return ir.passes.PassResult(model, modified)


class _Writer:
    """A writer of standard operators in place of one fused node."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node, self.tape = graph, node, Tape()

    def input(self, index: int) -> ir.Value | None:
        """Return an input of the fused node, or None where it is left out."""
        return self.node.inputs[index] if len(self.node.inputs) > index else None

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: float | list[int]) -> ir.Value:
        """Write one more operator and return its result."""
        return self.tape.op(op_type, list(inputs), attributes)

    def constant(self, values: object, name: str, dtype: type = np.float32) -> ir.Value:
        """Add a constant to the graph."""
        return add_initializer(
            self.graph, fresh_name(self.graph, f"{name_of(self.node)}_{name}"), np.asarray(values, dtype)
        )

    def sum(self, *values: ir.Value | None) -> ir.Value:
        """Write the sum of those values that are not None."""
        there = [value for value in values if value is not None]
        total = there[0]
        for value in there[1:]:
            total = self.op("Add", total, value)
        return total

    def normalized(self, value: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
        """Write a LayerNormalization with the node's epsilon."""
        epsilon = self.node.attributes.get_float("epsilon", 1e-12)
        return self.op("LayerNormalization", value, scale, *([] if bias is None else [bias]), epsilon=epsilon, axis=-1)


Outputs = list[ir.Value | None]


def _skip_norm(w: _Writer) -> Outputs | None:
    total = w.sum(w.op("Add", w.input(0), w.input(1)), w.input(4))
    outputs: Outputs = [w.normalized(total, w.input(2), w.input(3)), None, None, total]
    return outputs if all(not each.uses() for each in w.node.outputs[1:3]) else None


def _erf_gelu(w: _Writer) -> Outputs:
    x = w.sum(w.input(0), w.input(1))
    reach = w.op("Erf", w.op("Mul", x, w.constant(SQRT_HALF, "slope")))
    halved = w.op("Mul", x, w.constant(0.5, "half"))
    return [w.op("Mul", halved, w.op("Add", reach, w.constant(1.0, "one")))]


def _tanh_gelu(w: _Writer) -> Outputs:
    x = w.sum(w.input(0), w.input(1))
    square = w.op("Mul", x, x)
    factor = w.op("Add", w.op("Mul", square, w.constant(SQRT_TWO_OVER_PI * CUBE, "cube")), _root(w))
    reach = w.op("Tanh", w.op("Mul", x, factor))
    halved = w.op("Mul", x, w.constant(0.5, "half"))
    return [w.op("Mul", halved, w.op("Add", reach, w.constant(1.0, "one")))]


def _root(w: _Writer) -> ir.Value:
    return w.constant(SQRT_TWO_OVER_PI, "slope")


def _quick_gelu(w: _Writer) -> Outputs:
    x = w.sum(w.input(0))
    alpha = w.constant(w.node.attributes.get_float("alpha", 1.702), "slope")
    return [w.op("Mul", x, w.op("Sigmoid", w.op("Mul", x, alpha)))]


def _embed_norm(w: _Writer) -> Outputs | None:
    """Write the sum of words, places and segments; None if somebody reads the mask's lengths."""
    if w.node.outputs[1].uses() if len(w.node.outputs) > 1 else False:
        return None
    ids, segments = w.input(0), w.input(1)
    places = w.input(8)
    if places is None:
        length = w.op("Gather", w.op("Shape", ids), w.constant(1, "axis", np.int64))
        places = w.op("Range", w.constant(0, "first", np.int64), length, w.constant(1, "step", np.int64))
    total = w.sum(w.op("Gather", w.input(2), ids), w.op("Gather", w.input(3), places))
    total = total if segments is None else w.op("Add", total, w.op("Gather", w.input(4), segments))
    return [w.normalized(total, w.input(5), w.input(6)), None, total]


def _attention(w: _Writer) -> Outputs | None:
    heads = w.node.attributes.get_int("num_heads", 0)
    weight, bias = constant(w.input(1)), constant(w.input(2))
    odd = ("qkv_hidden_sizes", "do_rotary", "past_present_share_buffer", "rotary_embedding_dim")
    unknown = any(w.input(index) is not None for index in (4, 6)) or any(name in w.node.attributes for name in odd)
    extra = [value for value in w.node.outputs[1:] if value.uses() or value.is_graph_output()]
    if unknown or extra or weight is None or weight.ndim != 2 or weight.shape[1] % (3 * max(heads, 1)) or not heads:
        return None
    width = weight.shape[1] // 3
    split = w.constant([0, 0, heads, width // heads], "heads", np.int64)
    parts = []
    for index, name in enumerate(("query", "key", "value")):
        at = slice(index * width, (index + 1) * width)
        part = w.op("MatMul", w.input(0), w.constant(weight[:, at], f"{name}_weight"))
        part = part if bias is None else w.op("Add", part, w.constant(bias[at], f"{name}_bias"))
        turned = [0, 2, 3, 1] if name == "key" else [0, 2, 1, 3]
        parts.append(w.op("Transpose", w.op("Reshape", part, split), perm=turned))
    query, key, value = parts
    scale = w.node.attributes.get_float("scale", 0.0) or (width // heads) ** -0.5
    scores = w.op("Mul", w.op("MatMul", query, key), w.constant(scale, "scale"))
    mask = _mask(w, scores)
    if mask is None:
        return None
    chances = w.op("Softmax", w.sum(scores, *mask, w.input(5)), axis=-1)
    mixed = w.op("Transpose", w.op("MatMul", chances, value), perm=[0, 2, 1, 3])
    return [w.op("Reshape", mixed, w.constant([0, 0, width], "width", np.int64))]


def _mask(w: _Writer, scores: ir.Value) -> list[ir.Value] | None:
    """Write the terms that are added to the scores; None for forms that are not known."""
    filter_value = w.node.attributes.get_float("mask_filter_value", -10000.0)
    terms, mask = [], w.input(3)
    if w.node.attributes.get_int("unidirectional", 0):
        sizes = w.op("Slice", w.op("Shape", scores), w.constant([2], "from", np.int64), w.constant([4], "to", np.int64))
        ones = w.op("ConstantOfShape", sizes)
        later = w.op("Trilu", w.op("Add", ones, w.constant(1.0, "later")), w.constant(1, "above", np.int64), upper=1)
        terms.append(w.op("Mul", later, w.constant(filter_value, "hidden")))
    if mask is not None:
        if mask.shape is None or len(mask.shape) != 2:
            return None
        left = w.op("Sub", w.constant(1.0, "full"), w.op("Cast", mask, to=int(ir.DataType.FLOAT)))
        hidden = w.op("Mul", left, w.constant(filter_value, "masked"))
        terms.append(w.op("Unsqueeze", hidden, w.constant([1, 2], "axes", np.int64)))
    return terms


FORMS: dict[str, Callable[[_Writer], Outputs | None]] = {
    "Attention": _attention,
    "BiasGelu": _erf_gelu,
    "EmbedLayerNormalization": _embed_norm,
    "FastGelu": _tanh_gelu,
    "Gelu": _erf_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_norm,
}


def _put(graph: ir.Graph, node: ir.Node, tape: Tape, outputs: Outputs) -> None:
    """Put the standard operators in place of the fused one; values keep their names."""
    for old, new in zip(node.outputs, outputs, strict=False):
        if new is None:
            continue
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = name
    graph.insert_before(node, list(tape.nodes))
    graph.remove(node, safe=True)
