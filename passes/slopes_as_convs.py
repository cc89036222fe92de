"""Activations with a slope per channel as convolutions of single channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.graph import add_initializer, fresh_name, fresh_value_name
from ptq.passes.linear import constant, is_float32
from ptq.passes.pool_means import num_axes
from ptq.passes.rewire import stand_in


@dataclass(frozen=True)
class SlopesAsConvs(ir.passes.InPlacePass):
    """Write a PRelu of an image with a slope s for each channel as two convolutions of single channels and an Add.

    onnxruntime's PRelu takes 5 ns per number, ten times as long as all of these, and has no integer kernel; the first
    convolution takes the Relu in, and the second one the Add.

    Before: y = PRelu(x, s)
    After:  y = Add(x, Conv(Relu(Conv(x, -1)), 1 - s))
    Requires: float32 images, a constant slope for each channel or one for all; one for all becomes a LeakyRelu.
    Preserves float outputs: yes, within rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every one of them."""
        found = [node for node in model.graph if node.op_type == "PRelu" and not node.domain]
        changed = [_rewrite(model.graph, node) for node in found]
        return ir.passes.PassResult(model, any(changed))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    x, slopes = node.inputs[0], constant(node.inputs[1])
    if x is None or slopes is None or not is_float32(x) or slopes.dtype != np.float32:
        return False
    if slopes.size == 1 and slopes.ndim <= (num_axes(x) or 0):
        stand_in(graph, node, ir.node("LeakyRelu", [x], {"alpha": float(slopes.item())}, name=node.name))
        return True
    axes = num_axes(x)
    by_axis = (1,) * ((axes or 0) - slopes.ndim) + slopes.shape
    if axes is None or axes < 3 or len(by_axis) != axes or by_axis != (1, slopes.size, *[1] * (axes - 2)):
        return False
    lowered = _scaled(graph, node, x, "negated", np.full(slopes.size, -1, np.float32))
    below = _named(graph, node, ir.node("Relu", [lowered.outputs[0]]), "below")
    raised = _scaled(graph, node, below.outputs[0], "raised", np.float32(1) - slopes.reshape(-1))
    stand_in(graph, node, lowered, below, raised, ir.node("Add", [x, raised.outputs[0]], name=node.name))
    return True


def _scaled(graph: ir.Graph, node: ir.Node, source: ir.Value, key: str, factors: NDArray[np.float32]) -> ir.Node:
    """Multiply each channel by a number."""
    ones = [1] * ((num_axes(node.inputs[0]) or 2) - 2)
    name = fresh_name(graph, f"{node.outputs[0].name}_{key}_weight")
    weight = add_initializer(graph, name, factors.reshape(-1, 1, *ones))
    made = ir.node("Conv", [source, weight], {"group": factors.size, "kernel_shape": ones})
    return _named(graph, node, made, key)


def _named(graph: ir.Graph, node: ir.Node, made: ir.Node, key: str) -> ir.Node:
    out, like = made.outputs[0], node.outputs[0]
    out.name, out.type, out.shape = fresh_value_name(graph, f"{like.name}_{key}"), like.type, like.shape
    return made
