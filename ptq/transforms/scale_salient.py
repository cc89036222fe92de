"""Scaling of weights that meet the largest activations, before they are rounded, where the scale is free.

x W = (x / s) (s W): a weight in a channel that s widens loses less, its neighbors on the same grid lose a little more.
What is divided has to be divided by something that is there anyway: the scale of a normalization, the product that
makes the values of an attention, or the one that a gate multiplies. It helps rounding that looks at weights alone;
methods that look at the inputs gain nothing by it, as they know which errors cost the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.record import CHANNELS
from ptq.calibration.statistics import ExtremesOf
from ptq.core.arrays import Float
from ptq.core.errors import EquivalenceError
from ptq.core.problem import LayerProblem, Needs
from ptq.core.smoothing import scales_of
from ptq.core.spec import QuantSpec
from ptq.passes.check_equivalence import Original
from ptq.passes.linear import constant, name_of
from ptq.passes.placing import place_weights
from ptq.passes.selection import Exclusions
from ptq.passes.smooth_activations import SmoothActivations, normalization_for
from ptq.passes.smooth_values import SmoothValues, gated_projections, value_projections
from ptq.passes.tied import untied
from ptq.solving.choices import LayerChoice
from ptq.transforms.rewritten import Rewritten
from ptq.transforms.smooth_products import FREE_DB, products_by_input
from ptq.weights import Rtn

BYTE = 8

NARROWEST = 1e-3
"""Share of the widest channel below which no channel is taken to be."""


@dataclass(frozen=True)
class ScaleSalient:
    """Scale channels of weights by what they meet before they are rounded, without changing what the model computes.

    Source:
        Lin et al., "AWQ" (arXiv 2306.00978): s = (mean |x|)^a, a searched by output error. Differs: the root of the
        mean square, also with the weights in the formula, errors of channels taken as independent, only where free.

    Attributes:
        exclusions: The user's.
    """

    exclusions: Exclusions = field(default_factory=Exclusions)

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Scale what is free to scale and gains by it.

        Args:
            state: The model so far. Not modified.
            calibration: Looked at once, unless nothing is free.

        Returns:
            The new state; `state` itself where nothing is worth it.
        """
        model, excluded = state.model, untied(state.model, self.exclusions.on(state.model))
        if calibration.is_random or not products_by_input(model, excluded):
            return state
        layers = place_weights(model, excluded).layers
        specs = rounded_alone({layer.name: state.choices.choice(layer) for layer in layers})
        free = free_inputs(model, specs)
        if not free:
            return state
        halves = calibration.observe(model, dict.fromkeys(free, (ExtremesOf(),)), CHANNELS, again=True).halves
        scales = {}
        for source, nodes in free.items():
            both = halves[source][0].merge(halves[source][1])
            weights = [
                (weight, specs[name_of(node)]) for node in nodes if (weight := constant(node.inputs[1])) is not None
            ]
            scale, gain_db = best_lift(weights, both.square / max(both.count, 1))
            if gain_db > FREE_DB:
                scales[source] = (scale, gain_db)
        changed = _scaled(model, free, {source: scale for source, (scale, _) in scales.items()}, calibration)
        if changed is None:
            return state
        gains = sorted(gain_db for _, gain_db in scales.values())
        note = (
            f"weights behind {len(scales)} inputs scaled before rounding: expected error {gains[0]:.1f} to "
            f"{gains[-1]:.1f} dB lower"
        )
        return replace(state, model=changed, notes=(*state.notes, note), evened_out=True)


def rounded_alone(choices: Mapping[str, LayerChoice]) -> dict[str, QuantSpec]:
    """Map layers whose methods look at the weight alone to their grids; at 8 bits there is nothing to gain."""
    looked = {name: choice for name, choice in choices.items() if choice.method.needs == Needs.WEIGHT}
    return {name: choice.spec for name, choice in looked.items() if choice.spec.num_bits < BYTE}


def free_inputs(model: ir.Model, specs: Mapping[str, QuantSpec]) -> dict[str, list[ir.Node]]:
    """Map values whose channels can be scaled for nothing to the products that read them, all of them in `specs`."""
    makers = _makers(model)
    products = products_by_input(model, lambda node: None if name_of(node) in specs else "of another method")
    return {source: nodes for source, nodes in products.items() if _is_free(nodes, makers)}


def _makers(model: ir.Model) -> dict[str, str]:
    return value_projections(model) | gated_projections(model)


def best_lift(weights: Sequence[tuple[NDArray[np.float32], QuantSpec]], square: Float) -> tuple[Float, float]:
    """Choose the scales with which rounded weights err least at the outputs.

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
    """Whether something in front of these products takes a scale over."""
    value = nodes[0].inputs[0]
    alone = len(nodes) == 1 and name_of(nodes[0]) in makers
    return alone or (value is not None and normalization_for(value, list(nodes)) is not None)


def _scaled(
    model: ir.Model,
    free: Mapping[str, list[ir.Node]],
    scales: Mapping[str, Float],
    calibration: CalibrationSet,
) -> ir.Model | None:
    """Scale products and normalized values, or the latter alone if products are not as they look; None if neither."""
    names, makers = {source: tuple(map(name_of, free[source])) for source in scales}, _makers(model)
    made = {names[source][0]: scale for source, scale in scales.items() if names[source][0] in makers}
    normed = {source: scale for source, scale in scales.items() if names[source][0] not in makers}
    original = Original(model, calibration.first, calibration.custom_ops)
    for products in (made, {}) if scales else ():
        changed = model.clone()
        SmoothValues(products)(changed)
        SmoothActivations(normed, names)(changed)
        try:
            original.require_same("ScaleSalient", changed)
        except EquivalenceError:  # heads in another order than they look
            continue
        return changed
    return None
