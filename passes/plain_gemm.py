"""Plain Gemm, as the integer kernel wants it: no factors, no transposed activation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.graph import add_initializer


@dataclass(frozen=True)
class PlainGemm(ir.passes.InPlacePass):
    """Fold the factors of Gemm into its constants and write a transposed input as a Transpose.

    Before: y = Gemm <alpha, beta, transA = 1> (a, B, C)
    After:  y = Gemm (Transpose (a), alpha B, beta C)
    Requires: constant float32 B and C; C may be missing.
    Preserves float outputs: yes, within rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Gemm with a constant weight."""
        modified = False
        for node in list(model.graph):
            if node.op_type == "Gemm" and not node.domain and _has_constants(node):
                modified |= _fold_factor(model.graph, node, 1, "alpha")
                modified |= _fold_factor(model.graph, node, 2, "beta")
                modified |= _transpose_input(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _has_constants(node: ir.Node) -> bool:
    constants = [value for value in node.inputs[1:3] if value is not None]
    return bool(constants) and all(
        value.const_value is not None and value.dtype == ir.DataType.FLOAT for value in constants
    )


def _fold_factor(graph: ir.Graph, node: ir.Node, index: int, attribute: str) -> bool:
    factor = node.attributes.get_float(attribute, 1.0)
    if factor == 1.0:
        return False
    del node.attributes[attribute]
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is not None and value.const_value is not None:
        scaled: NDArray[np.float32] = (value.const_value.numpy().astype(np.float64) * factor).astype(np.float32)
        node.replace_input_with(index, add_initializer(graph, f"{node.outputs[0].name}_{attribute}", scaled))
    return True


def _transpose_input(graph: ir.Graph, node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or not node.attributes.get_int("transA", 0):
        return False
    del node.attributes["transA"]
    turned = ir.node("Transpose", [source], {"perm": [1, 0]})
    out = turned.outputs[0]
    out.name, out.type = f"{node.outputs[0].name}_turned", source.type
    out.shape = None if source.shape is None else ir.Shape(list(source.shape)[::-1])
    graph.insert_before(node, turned)
    node.replace_input_with(0, out)
    return True
