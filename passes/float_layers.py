"""Layers on float kernels whose weights lie on codes: a static or dynamic model's share of what is weight-only."""

from __future__ import annotations

import onnx_ir as ir

from ptq.core.layer import LinearLayer
from ptq.passes.linear import describe_linear, name_of
from ptq.passes.placement import Placement
from ptq.passes.stored import value_in
from ptq.target import INTEGER_OPS


def float_layers(model: ir.Model, placement: Placement) -> tuple[LinearLayer, ...]:
    """Return the layers on float kernels whose weights lie on codes, each weight read once, in dataflow order."""
    weights = {site.reader: site.name for site in placement.stored if site.role == "float"}
    found = []
    for node in model.graph:
        name = weights.get(name_of(node))
        layer = describe_linear(node, integer=False) if name is not None and node.op_type in INTEGER_OPS else None
        if isinstance(layer, LinearLayer) and layer.weight == name and len(value_in(model, name).uses()) == 1:
            found.append(layer)
    return tuple(found)


def takes_float_bias(layer: LinearLayer) -> bool:
    """Whether a layer on a float kernel has a place for a bias of its own."""
    return layer.op_type in ("Conv", "Gemm")
