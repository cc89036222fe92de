"""Weights that meet the largest activations, scaled up before they are rounded, where the scale is free.

x W = (x / s) (s W): a weight in a channel that s widens loses less, its neighbours on the same grid lose a little more.
What is divided has to be divided by something that is there anyway: the scale of a normalisation, the product that
makes the values of an attention, or the one that a gate multiplies. It helps rounding that looks at weights alone;
methods that look at the inputs gain nothing by it, as they know which errors cost the most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.extremes import collect_extremes
from ptq.core.errors import EquivalenceError
from ptq.core.problem import LayerProblem, Needs
from ptq.core.smoothing import scales_of
from ptq.core.spec import QuantSpec
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.linear import constant, name_of
from ptq.passes.smooth_activations import SmoothActivations, normalisation_for
from ptq.passes.smooth_values import SmoothValues, gated_projections, value_projections
from ptq.solving.choices import LayerChoice
from ptq.transforms.smooth_products import FREE_DB, Rewritten, products_by_input
from ptq.weights import Rtn

Feed = Mapping[str, NDArray[Any]]
Float = NDArray[np.float64]

BYTE = 8

NARROWEST = 1e-3
"""Share of the widest channel below which no channel is taken to be."""


def lift_salient(
    model: ir.Model,
    feeds: Iterable[Feed],
    first: Feed,
    specs: Mapping[str, QuantSpec],
    *,
    custom_ops: Sequence[str | Path] = (),
) -> Rewritten:
    """Scale channels of weights by what they meet, without changing what the model computes.

    Args:
        model: Prepared float model. Not modified.
        feeds: Calibration samples; consumed once, unless nothing is free.
        first: One of them, to check on.
        specs: Products whose weights are rounded -> their grids.
        custom_ops: Libraries the model needs.

    Returns:
        The rewritten model; the model itself where nothing is worth it.

    Source:
        Lin et al., "AWQ" (arXiv 2306.00978): s = (mean |x|)^a, a searched by output error. Differs: the root of the
        mean square, also with the weights in the formula, errors of channels taken as independent, only where free.
    """
    free = free_inputs(model, specs)
    if not free:
        return Rewritten(model)
    halves = collect_extremes(model, list(free), feeds, custom_ops=custom_ops)
    found = {}
    for source, nodes in free.items():
        seen = halves[source][0].merge(halves[source][1])
        weights = [(weight, specs[name_of(node)]) for node in nodes if (weight := constant(node.inputs[1])) is not None]
        scale, gain_db = best_lift(weights, seen.square / max(seen.count, 1))
        if gain_db > FREE_DB:
            found[source] = (scale, gain_db)
    names = {source: tuple(map(name_of, free[source])) for source in found}
    makers = _makers(model)
    made = {names[source][0]: scale for source, (scale, _) in found.items() if names[source][0] in makers}
    normed = {source: scale for source, (scale, _) in found.items() if names[source][0] not in makers}
    changed = _applied(model, [(made, normed), ({}, normed)], names, first, custom_ops) if found else None
    if changed is None:
        return Rewritten(model)
    gains = sorted(gain_db for _, gain_db in found.values())
    note = (
        f"weights behind {len(found)} inputs scaled before rounding: expected error {gains[0]:.1f} to {gains[-1]:.1f}"
    )
    return Rewritten(changed, notes=(f"{note} dB lower",), evened_out=True)


def rounded_alone(choices: Mapping[str, LayerChoice]) -> dict[str, QuantSpec]:
    """Layers whose methods look at the weight alone -> their grids; at 8 bits there is nothing to gain."""
    looked = {name: choice for name, choice in choices.items() if choice.method.needs == Needs.WEIGHT}
    return {name: choice.spec for name, choice in looked.items() if choice.spec.num_bits < BYTE}


def free_inputs(model: ir.Model, specs: Mapping[str, QuantSpec]) -> dict[str, list[ir.Node]]:
    """Values whose channels can be scaled for nothing -> the products that read them, all of which are in `specs`."""
    makers = _makers(model)
    products = products_by_input(model, lambda node: None if name_of(node) in specs else "of another method")
    return {source: nodes for source, nodes in products.items() if _is_free(nodes, makers)}


def _makers(model: ir.Model) -> dict[str, str]:
    return value_projections(model) | gated_projections(model)


def best_lift(weights: Sequence[tuple[NDArray[np.float32], QuantSpec]], square: Float) -> tuple[Float, float]:
    """The scales with which rounded weights err least at the outputs.

    Args:
        weights: Of the products that read a value, shape [channels, features], and their grids.
        square: Mean square of each channel. Shape [channels].

    Returns:
        What each channel is divided by and its weights multiplied, and how many dB that gains; ones and 0 if nothing.
    """
    ones = np.ones(len(square))
    plain = _error(weights, square, ones)
    best, least = ones, plain
    widest = np.max([np.abs(weight).max(1) for weight, _ in weights], axis=0).astype(np.float64)
    for scale_of in scales_of(np.maximum(widest, 1e-9), NARROWEST):
        scale = scale_of(np.sqrt(square))
        error = _error(weights, square, scale)
        if error < least:
            best, least = scale, error
    return best, float(10 * np.log10(max(plain, 1e-300) / max(least, 1e-300)))


def _error(weights: Sequence[tuple[NDArray[np.float32], QuantSpec]], square: Float, scale: Float) -> float:
    total = 0.0
    for weight, spec in weights:
        wide = np.ascontiguousarray((weight * scale[:, None]).T, np.float32)
        rounded = Rtn().quantize(LayerProblem("", wide, spec)).decode()
        total += float((np.square(rounded - wide, dtype=np.float64) @ (square / np.square(scale))).sum())
    return total


def _is_free(nodes: Sequence[ir.Node], makers: Mapping[str, str]) -> bool:
    """Whether something before these products takes a scale over."""
    value = nodes[0].inputs[0]
    alone = len(nodes) == 1 and name_of(nodes[0]) in makers
    return alone or (value is not None and normalisation_for(value, list(nodes)) is not None)


def _applied(
    model: ir.Model,
    attempts: Sequence[tuple[Mapping[str, Float], Mapping[str, Float]]],
    names: Mapping[str, tuple[str, ...]],
    first: Feed,
    custom_ops: Sequence[str | Path],
) -> ir.Model | None:
    """The model with the first scales, of products and of normalised values, that leave its outputs as they were."""
    before = float_outputs(model, first, custom_ops)
    for made, normed in attempts:
        changed = model.clone()
        SmoothValues(made)(changed)
        SmoothActivations(normed, names)(changed)
        try:
            require_same("lift_salient", before, float_outputs(changed, first, custom_ops))
        except EquivalenceError:  # heads in another order than they look
            continue
        return changed
    return None
