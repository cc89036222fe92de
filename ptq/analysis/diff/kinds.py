"""Kinds of models: which of two is quantized, in which form, and what can be compared without Q/DQ pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from ptq.analysis.diff.causes import Names
from ptq.analysis.diff.names import ACTIVATIONS, consumers
from ptq.core.errors import InputError
from ptq.models.source import input_specs
from ptq.passes.lifting import has_weights
from ptq.passes.linear import name_of

GRIDS_AT = {
    "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QLinearConcat": 0, "QGemm": 7,
    "QLinearLeakyRelu": 3, "QLinearSigmoid": 3, "QLinearAveragePool": 3, "QLinearGlobalAveragePool": 3,
}  # fmt: skip
"""Operators on codes -> which input is the scale of their result; the zero point is next."""

INTEGER_WORDS = ("QLinear", "QGemm", "QAttention", "Integer", "NBits", "Bnb4", "DynamicQuantize")
CODES_SUFFIX = "_quantized"
FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def require_pair(reference: ir.Model, quantized: ir.Model, names: Names) -> None:
    """Refuse two models unless the first is float and the second its quantized one.

    Raises:
        InputError: Says which is what.
    """
    first, second = is_quantized(reference), is_quantized(quantized)
    if first and not second:
        raise InputError(
            f"{names.reference} is quantized and {names.quantized} is not: the arguments are swapped; "
            f"write `ptq diff {names.quantized} {names.reference} ...`"
        )
    if first:
        raise InputError(f"{names.reference} is already quantized; expected the float model first")
    if not second:
        raise InputError(
            f"{names.quantized} is not quantized: no Q/DQ pair, no codes, no integer operator in it; "
            "`ptq validate` compares any two models"
        )
    wanted, given = ({spec.name: spec for spec in input_specs(model)} for model in (reference, quantized))
    if set(wanted) != set(given):
        raise InputError(
            f"{names.quantized} has the inputs {', '.join(given)}, {names.reference} has {', '.join(wanted)}; "
            "expected the same model before and after quantization"
        )
    for name, spec in wanted.items():
        other = given[name]
        if spec.dtype != other.dtype or _clash(spec.shape, other.shape):
            raise InputError(f"input {spec} of {names.reference} is {other} in {names.quantized}; expected the same")


def is_quantized(model: ir.Model) -> bool:
    """Whether anything in a model is on codes."""
    functions = [node for function in model.functions.values() for node in function]
    nodes = [*model.graph.all_nodes(), *functions]
    on_codes = any(_is_integer(node) or node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes)
    return on_codes or any(_is_decoding(node) for node in model.graph) or has_weights(model)


def integer_operators(model: ir.Model) -> tuple[str, ...]:
    """Return a note on operators that hold their grids inside, which cannot be switched; none if there are none."""
    counts = Counter(node.op_type for node in model.graph.all_nodes() if _is_integer(node))
    listed = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    return (f"{listed}: they hold their grids inside and stay as they are",) if counts else ()


def shared_values(reference: ir.Model, quantized: ir.Model) -> dict[str, str]:
    """Find values of the float model that the quantized one has too, decoded or on codes.

    Args:
        reference: Prepared float model.
        quantized: The quantized model.

    Returns:
        Name in the float model -> name in the quantized one, in dataflow order. A Relu that became part of a grid makes
        them differ.
    """
    there = {_decoded_name(node): node for node in quantized.graph if _decoded_name(node)}
    names = {}
    for node in reference.graph:
        name, value = name_of(node), node.outputs[0]
        other = there.get(name)
        if other is None or value.dtype not in FLOAT_TYPES or not isinstance(value.type, ir.TensorType):
            continue
        readers = consumers(value)
        behind = name_of(readers[0]) if len(readers) == 1 and readers[0].op_type in ACTIVATIONS else name
        shapes = [None if v.shape is None else tuple(v.shape) for v in (value, other.outputs[0])]
        if not _clash(*shapes):
            names[name if behind in there or other.op_type not in GRIDS_AT else behind] = name
    return names


def exposed_codes(quantized: ir.Model, names: Mapping[str, str]) -> ir.Model:
    """Copy the quantized model with the named values, decoded, as its outputs."""
    model = quantized.clone()
    there = {_decoded_name(node): node for node in model.graph if _decoded_name(node)}
    outputs = []
    for name in names.values():
        node = there[name]
        value = node.outputs[0]
        if node.op_type in GRIDS_AT:
            at = GRIDS_AT[node.op_type]
            back = ir.node("DequantizeLinear", [value, *node.inputs[at : at + 2]])
            back.outputs[0].name = f"{name}?decoded"
            model.graph.append(back)
            value = back.outputs[0]
        outputs.append(value)
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    return model


def _is_integer(node: ir.Node) -> bool:
    return node.domain == "ai.ptq" or any(word in node.op_type for word in INTEGER_WORDS)


def _is_decoding(node: ir.Node) -> bool:
    """Whether a node widens constant codes: Cast of 8 or fewer bits."""
    value = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
    short = value is not None and value.is_initializer() and value.dtype is not None and value.dtype.bitwidth <= 8
    return bool(short) and value is not None and value.dtype != ir.DataType.BOOL and len(value.shape or ()) > 1


def _decoded_name(node: ir.Node) -> str:
    """Return the float model's name of a node's result; empty if it is on codes that cannot be decoded here."""
    if not node.outputs or not node.outputs[0].name:
        return ""
    name = name_of(node)
    if node.op_type in GRIDS_AT:
        return name.removesuffix(CODES_SUFFIX)
    return "" if node.op_type == "QuantizeLinear" or (node.domain == "ai.ptq" and "Conv" in node.op_type) else name


def _clash(one: tuple[object, ...] | None, other: tuple[object, ...] | None) -> bool:
    """Whether two shapes cannot be the same."""
    if one is None or other is None:
        return False
    pairs = list(zip(one, other, strict=False))
    return len(one) != len(other) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
