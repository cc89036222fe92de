"""Layers that can be fitted anew where channels in front of them are gone, and what is written into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.core.layer import LinearLayer
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Mask
from ptq.passes.graph import add_initializer, fresh_name, initializer_of
from ptq.passes.linear import constant, describe_linear, name_of, out_axis


@dataclass(frozen=True)
class RefitLayer:
    """A layer whose input is not what it was.

    Attributes:
        original: The layer in the original network.
        changed: The same layer without channels.
        features: Which of its features are left. Shape [features].
        has_bias: Whether there is a bias that is its own.
    """

    original: LinearLayer
    changed: LinearLayer
    features: Mask
    has_bias: bool


def fitting(node: ir.Node) -> LinearLayer | None:
    """Return a layer whose weights can be fitted to what it reads: not in groups, and read by no other; else None."""
    layer = describe_linear(node, integer=False)
    if isinstance(layer, str) or layer.weight_index != 1 or layer.unfold.groups != 1 or node.domain:
        return None
    weight = node.inputs[1]
    return layer if weight is not None and weight.is_initializer() and len(weight.uses()) == 1 else None


def refit_layers(model: ir.Model, changed: ir.Model, groups: ChannelGroups, removed: Mask) -> Iterator[RefitLayer]:
    """Yield the layers behind what channels left, in dataflow order; convolutions and Gemms get a bias of their own.

    Args:
        model: The original model, whose channels are `groups`.
        changed: The model without channels.
        groups: Channels of the original model.
        removed: Which groups left. Shape [groups].
    """
    others = {name_of(node): node for node in changed.graph}
    touched = {str(axis.value.name) for axis, at in groups.axes.items() if removed[at].any()}
    for node in model.graph:
        layer, other = fitting(node), others[name_of(node)]
        if layer is not None and layer.source in touched:
            if node.op_type != "MatMul":
                _give_bias(other)
            now, weight = fitting(other), node.inputs[1]
            at = None if weight is None else groups.axes.get(Axis(weight, layer.layout.out_axis))
            left = np.ones(layer.layout.shape[layer.layout.out_axis], np.bool_) if at is None else ~removed[at]
            if now is not None:
                yield RefitLayer(layer, now, left, _is_own(changed, now.bias))
        if touched & {str(value.name) for value in node.inputs if value is not None} or (touched and _has_body(node)):
            touched |= {str(value.name) for value in node.outputs}


def _give_bias(node: ir.Node) -> None:
    """Make a bias of zeros where there is none, and a copy where it is not this layer's alone."""
    graph, weight, bias = node.graph, constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if graph is None or weight is None or (bias is not None and len(bias.uses()) == 1):
        return
    before = np.zeros(weight.shape[out_axis(node, 1)], np.float32) if bias is None else constant(bias)
    if before is not None:
        node.resize_inputs(max(len(node.inputs), 3))
        name = fresh_name(graph, f"{node.outputs[0].name}_bias")
        node.replace_input_with(2, add_initializer(graph, name, before))


def _has_body(node: ir.Node) -> bool:
    """Whether a node may read values that are not among its inputs."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _is_own(model: ir.Model, bias: str | None) -> bool:
    return bias is not None and bias in model.graph.initializers and len(model.graph.initializers[bias].uses()) == 1


def install(model: ir.Model, layer: LinearLayer, weight: Float, constants: Float | None) -> None:
    """Write new weights into a layer, and add constants to its bias.

    Args:
        model: The model, changed in place.
        layer: The layer.
        weight: Shape [features, inputs].
        constants: Shape [features]; None adds nothing.
    """
    _write(model, layer.weight, layer.layout.to_tensor(weight))
    if layer.bias is not None and constants is not None:
        bias = initializer_of(model, layer.bias)
        _write(model, layer.bias, bias + constants.reshape(bias.shape))


def _write(model: ir.Model, name: str, array: Float) -> None:
    tensor = ir.tensor(np.ascontiguousarray(array, np.float32), name=name)
    model.graph.initializers[name].const_value = tensor
