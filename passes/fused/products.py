"""Products and convolutions with what stands around them: transpositions, a factor, a sum, an activation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq.passes.fused.writer import CONVOLUTION, WITH_SETTINGS, Outputs, Writer
from ptq.passes.linear import constant


def fused_matmul(w: Writer) -> Outputs | None:
    """Write MatMul, with factor and transposition taken into a constant; None for moved batches and unknown ranks."""
    attributes = w.node.attributes
    if attributes.get_int("transBatchA", 0) or attributes.get_int("transBatchB", 0):
        return None
    alpha, sides = attributes.get_float("alpha", 1.0), []
    for index, name in enumerate(("transA", "transB")):
        value, array = w.input(index), constant(w.input(index))
        turned = attributes.get_int(name, 0)
        if array is not None and (turned or alpha != 1) and array.dtype == np.float32:
            array, alpha = array * np.float32(alpha), 1.0
            value = w.constant(array.swapaxes(-1, -2) if turned and array.ndim > 1 else array, "weight")
        elif turned:
            shape = w.shape(value)
            if shape is None:
                return None
            axes = [*range(len(shape))]
            value = w.op("Transpose", value, perm=[*axes[:-2], *axes[-2:][::-1]])
        sides.append(value)
    product = w.op("MatMul", *sides)
    return [product if alpha == 1 else w.op("Mul", product, w.constant(alpha, "factor"))]


def fused_gemm(w: Writer) -> Outputs | None:
    """Write Gemm and its activation; None for an activation that is not known."""
    attributes = w.node.attributes
    kind = attributes.get_string("activation", "")
    names = [f"activation_{name}" for name in WITH_SETTINGS.get(kind, ())]
    plain = {name: attributes[name].value for name in ("transA", "transB", "alpha", "beta") if name in attributes}
    inputs = [value for value in w.node.inputs if value is not None]
    settings = [attributes.get_float(name, 0.0) if name in attributes else None for name in names]
    outcome = w.activated(w.op("Gemm", *inputs, **plain), kind, settings)
    return None if outcome is None else [outcome]


def fused_conv(w: Writer) -> Outputs | None:
    """Write Conv, a sum, and the activation; None for an activation that is not known."""
    outcome = convolved(w, w.input(0), w.input(1), w.input(2))
    return None if outcome is None else [outcome]


def convolved(
    w: Writer, source: ir.Value | None, weight: ir.Value | None, bias: ir.Value | None, **other: int
) -> ir.Value | None:
    """Write the convolution of a fused one, given its plain operands, with what comes behind.

    Args:
        w: Where to.
        source: What is convolved.
        weight: In the plain order of axes.
        bias: Of every feature, or None.
        other: Attributes that differ from those of the fused node.

    Returns:
        The value, or None for an activation that is not known.
    """
    attributes = w.node.attributes
    plain = {name: attributes[name].value for name in CONVOLUTION if name in attributes} | other
    outcome = w.sum(w.op("Conv", source, weight, *([] if bias is None else [bias]), **plain), w.input(3))
    settings = [*attributes.get_floats("activation_params", ())]
    return w.activated(outcome, attributes.get_string("activation", ""), settings)
