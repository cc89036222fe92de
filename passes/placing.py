"""Decision where integers go, in static models and in those where only weights have theirs fixed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from ptq.core.errors import UnsupportedModelError
from ptq.core.layer import LinearLayer
from ptq.passes.given import given_grids, is_on_codes
from ptq.passes.linear import describe_linear, name_of
from ptq.passes.placement import Excludes, Placement
from ptq.passes.planner import NO_DYNAMIC_KERNEL, NO_KERNEL, Planner, left_float_of, near_a_pole, roundable
from ptq.passes.poles import relative_values
from ptq.passes.spreading import (
    is_product,
    lacks_kernel,
)  # fmt: skip
from ptq.passes.stored import RECURRENT, find_stored, float_kernels
from ptq.passes.tables import find_tables
from ptq.target import LINEAR_OPS


def place(
    model: ir.Model,
    excluded: Excludes = lambda _node: None,
    *,
    native: bool = False,
    floats: Mapping[str, str] = MappingProxyType({}),
) -> Placement:
    """Decide which nodes of a prepared graph run on integers.

    Args:
        model: Prepared float model with known element types.
        excluded: The user's exclusions.
        floats: Nodes that keep float kernels besides -> why; their weights lie on codes all the same.
        native: Whether operators of our own may run layers.

    Returns:
        The placement.

    Raises:
        UnsupportedModelError: The exclusions leave nothing.
    """
    planner = Planner(excluded, floats, native, relative_values(model.graph), given_grids(model))
    nodes = list(model.graph)
    for node in nodes:
        planner.visit_given(node)
    for node in nodes:
        planner.visit_linear(node)
    if not planner.integer and not planner.stored(model):
        _require_own_fault(model, excluded, planner.left_float)
    for node in nodes:
        planner.visit_other(node)
    return planner.finish(nodes, model)


def place_weights(
    model: ir.Model,
    excluded: Excludes = lambda _node: None,
    *,
    only_products: bool = False,
    floats: Mapping[str, str] = MappingProxyType({}),
) -> Placement:
    """Decide which weights lie on codes where only they have their integers fixed: every linear layer, and no grids.

    Args:
        model: Prepared float model with known element types.
        excluded: The user's exclusions.
        only_products: Layers that take their ranges at run time: products with the weight on the right.
        floats: Layers that keep float kernels besides -> why.

    Returns:
        The placement.

    Raises:
        UnsupportedModelError: The exclusions leave nothing.
    """
    layers, left_float = [], {}
    relative = relative_values(model.graph) if only_products else {}
    for node in model.graph:
        if only_products and lacks_kernel(node, RECURRENT) and (why := _recurrent_in_float(node, floats)):
            left_float[name_of(node)] = excluded(node) or why
        if node.domain or node.op_type not in LINEAR_OPS or is_product(node):
            continue
        layer = describe_linear(node, integer=only_products)
        unfit = NO_DYNAMIC_KERNEL if only_products and "Conv" in node.op_type else None
        unfit = floats.get(name_of(node)) or unfit
        if reader := relative.get(node.outputs[0]):
            unfit = near_a_pole(reader)
        reason = excluded(node) or (layer if isinstance(layer, str) else unfit)
        if reason:
            left_float[name_of(node)] = reason
        elif isinstance(layer, LinearLayer):
            layers.append(layer)
    tables = find_tables(model, excluded, layers)
    stored = find_stored(model, excluded, roundable(left_float, relative))
    if not layers and not stored:
        _require_own_fault(model, excluded, left_float)
    kernels, grids = float_kernels(model, left_float), given_grids(model)
    given = frozenset(name_of(node) for node in model.graph if grids and is_on_codes(node, grids))
    left_float = left_float_of(model, excluded, (*layers, *tables, *stored), left_float)
    return Placement(
        tuple(layers), given, (), {}, frozenset(), left_float, frozenset(), tables, stored=stored,
        float_kernels=kernels,
    )  # fmt: skip


def _recurrent_in_float(node: ir.Node, floats: Mapping[str, str]) -> str | None:
    """Return why a recurrent layer keeps its float kernel where ranges are taken at run time, or None."""
    return floats.get(name_of(node)) or (None if node.op_type == "LSTM" else NO_KERNEL)


def _require_own_fault(model: ir.Model, excluded: Excludes, left_float: Mapping[str, str]) -> None:
    """Refuse exclusions that leave nothing; a model of which nothing can become integers is the verdict's business."""
    if any(excluded(node) for node in model.graph):
        reasons = "; ".join(sorted(set(left_float.values()))[:5])
        raise UnsupportedModelError(f"nothing to quantize: {reasons}; see `ptq inspect`")
