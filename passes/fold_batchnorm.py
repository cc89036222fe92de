"""Fold inference-time batch normalization into the linear layer before it.

With g = gamma / sqrt(variance + epsilon), per output channel:

    BatchNormalization(W x + b) = (g W) x + g (b - mean) + beta

so the node disappears, the weights are scaled by g, and the result is the same function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)

RULES = (fuse_batchnorm_into_conv_rule, fuse_batchnorm_into_conv_transpose_rule, fuse_batchnorm_into_gemm_rule)


@dataclass(frozen=True)
class FoldBatchNorm(ir.passes.InPlacePass):
    """Fold BatchNormalization into Conv, ConvTranspose, Gemm or MatMul.

    Before: y = BatchNormalization(Conv(x, W, b), gamma, beta, mean, variance)
    After:  y = Conv(x, g W, g (b - mean) + beta)
    Requires: constant weights that nothing else uses.
    Preserves float outputs: yes, within 1e-5.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold everything that folds; the rest stays as it is."""
        before = sum(node.op_type == "BatchNormalization" for node in model.graph)
        rewrite(model, pattern_rewrite_rules=RULES)
        for node in list(model.graph):
            if node.op_type == "BatchNormalization":
                _fold_into_matmul(model.graph, node)
        after = sum(node.op_type == "BatchNormalization" for node in model.graph)
        return ir.passes.PassResult(model, after != before)


def _fold_into_matmul(graph: ir.Graph, node: ir.Node) -> None:
    """Fold into a MatMul, which has no bias: its weight takes g, and the shift becomes an Add."""
    product = node.inputs[0].producer() if node.inputs[0] is not None else None
    numbers = [_constant(value) for value in node.inputs[1:5]]
    if product is None or product.op_type != "MatMul" or len(product.outputs[0].uses()) != 1:
        return
    weight = _constant(product.inputs[1])
    if weight is None or weight.ndim != 2 or any(number is None for number in numbers):
        return
    if len(product.inputs[1].uses()) != 1 or _rank(product.inputs[0]) != 2:  # type: ignore[union-attr]
        return  # a product's channels are its last axis, BatchNormalization's are axis 1: the same for rank 2 only
    gamma, beta, mean, variance = (number.astype(np.float64) for number in numbers if number is not None)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    g = gamma / np.sqrt(variance + epsilon)
    name = str(node.outputs[0].name)
    scaled = _initializer(graph, f"{name}_folded_weight", weight * g)
    shift = _initializer(graph, f"{name}_folded_shift", beta - g * mean)
    product.replace_input_with(1, scaled)
    add = ir.Node("", "Add", [product.outputs[0], shift], name=f"{name}_shift")
    graph.insert_before(node, add)
    out = node.outputs[0]
    add.outputs[0].type, add.outputs[0].shape = out.type, out.shape
    ir.convenience.replace_all_uses_with(out, add.outputs[0], replace_graph_outputs=True)
    out.name, add.outputs[0].name = None, name
    graph.remove(node, safe=True)


def _constant(value: ir.Value | None) -> NDArray[np.float32] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.float64]) -> ir.Value:
    tensor = ir.tensor(array.astype(np.float32), name=name)
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value
