"""Outliers set aside: the widest channels of an activation leave an integer product and are computed in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import bias_add, constant, name_of

SUFFIX = "_outliers"
"""End of the name of a product in float beside another, behind the name of that."""


@dataclass(frozen=True)
class SplitOutliers(ir.passes.InPlacePass):
    """Split products by channels of their input.

    Before: y = MatMul(x, W)
    After:  y = Sum(MatMul(x, W with the rows c zero), MatMul(Gather(x, c), W_c)); a bias stays with the first product.
        With limits, the first product reads Clip(x)
    Requires: products with constant weights of two axes on the right, no graph outputs.
    Ensures: the first product keeps its name and does not depend on channels c, so that its grid may clip them.
    Preserves float outputs: yes, within rounding, where the other channels stay within the limits.

    Attributes:
        channels: Product -> channels that leave it, ascending.
        limits: Product -> smallest and largest value of the other channels.
    """

    channels: Mapping[str, NDArray[np.int64]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split every product that is named."""
        nodes = {name_of(node): node for node in model.graph}
        for name, channels in self.channels.items():
            source = nodes[name].inputs[0]
            _split(model.graph, nodes[name], channels)
            if source is not None and name in self.limits:
                _clip(model.graph, nodes[name], source, self.limits[name])
        return ir.passes.PassResult(model, bool(self.channels))


def can_split(node: ir.Node) -> bool:
    """Whether the result of a product, its bias included, is read inside the graph alone."""
    last = bias_add(node) or node
    return not node.outputs[0].is_graph_output() and not last.outputs[0].is_graph_output()


def _split(graph: ir.Graph, node: ir.Node, channels: NDArray[np.int64]) -> None:
    weight, source, name = constant(node.inputs[1]), node.inputs[0], name_of(node)
    if weight is None or source is None:
        raise RuntimeError(f"{name} has no constant weight")
    rest = weight.copy()
    rest[channels] = 0
    node.replace_input_with(1, add_initializer(graph, fresh_name(graph, f"{name}_inlier_weight"), rest))
    index = add_initializer(graph, fresh_name(graph, f"{name}_outlier_channels"), channels)
    picked = ir.node("Gather", [source, index], {"axis": -1})
    own = add_initializer(graph, fresh_name(graph, f"{name}_outlier_weight"), weight[channels])
    product = ir.node("MatMul", [picked.outputs[0], own])
    last = bias_add(node) or node
    out = last.outputs[0]
    # Sum, not Add: onnxruntime makes a float Gemm of Add behind a product before it looks for integers.
    both = ir.node("Sum", [out, product.outputs[0]])
    names = {picked: f"{name}_outlier_values", product: f"{name}{SUFFIX}", both: f"{name}_whole"}
    for made, called in names.items():
        value = made.outputs[0]
        value.name, value.type = called, out.type
        value.shape = None if made is picked else out.shape
    ir.convenience.replace_all_uses_with(out, both.outputs[0])
    both.replace_input_with(0, out)
    graph.insert_after(last, [picked, product, both])


def _clip(graph: ir.Graph, node: ir.Node, source: ir.Value, limits: tuple[float, float]) -> None:
    """Clip the input of a product: a range that is taken at run time would reach the channels that left."""
    ends = [
        add_initializer(graph, fresh_name(graph, f"{name_of(node)}_{key}"), np.array(end, np.float32))
        for key, end in zip(("lowest", "highest"), limits, strict=True)
    ]
    clip = ir.node("Clip", [source, *ends])
    clip.outputs[0].name, clip.outputs[0].type, clip.outputs[0].shape = (
        f"{name_of(node)}_inliers",
        source.type,
        source.shape,
    )
    graph.insert_before(node, clip)
    node.replace_input_with(0, clip.outputs[0])
