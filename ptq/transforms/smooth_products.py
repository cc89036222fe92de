"""Smoothing of transformers: widths of activation channels evened out, the widest taken out of products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.record import CHANNELS
from ptq.calibration.statistics import ExtremesOf
from ptq.core.errors import EquivalenceError
from ptq.core.smoothing import Halves, Reader, Smoothing, SmoothingTerms, best_smoothing
from ptq.passes.check_equivalence import Original
from ptq.passes.linear import bias_add, constant, name_of
from ptq.passes.placement import Excludes
from ptq.passes.selection import Exclusions
from ptq.passes.smooth_activations import SmoothActivations, normalization_for
from ptq.passes.smooth_values import SmoothValues, gated_projections, value_projections
from ptq.passes.split_outliers import SUFFIX, SplitOutliers, can_split
from ptq.passes.tied import untied
from ptq.transforms.rewritten import Rewritten

Outliers = Literal["inside", "beside", "clipped"]
"""Where the widest channels are computed: within the integer product, in float beside it, or beside it and what they
leave behind is clipped, as ranges that are taken at run time ask for."""


WORTH_DB = 4.0
"""Gain that another pass over a tensor has to bring at a layer's output, dB."""

FREE_DB = 1.0
"""Gain that a change of weights alone has to bring, dB."""


class _TermsFor(Protocol):
    def __call__(self, worth_db: float, *, may_stand_aside: bool) -> SmoothingTerms: ...


@dataclass(frozen=True)
class SmoothProducts:
    """Even out the channels that products read, and take the widest ones out of them: 8 bits for inputs cost less.

    Attributes:
        exclusions: The user's.
        outliers: Where the widest channels are computed.
    """

    exclusions: Exclusions = field(default_factory=Exclusions)
    outliers: Outliers = "beside"

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Move widths into weights around them, widest channels beside products, where the expected error falls.

        Args:
            state: The model so far. Not modified.
            calibration: Looked at once, unless the model has no products.

        Returns:
            The new state, its model that of `state` where nothing is worth it.
        """
        model, excluded = state.model, untied(state.model, self.exclusions.on(state.model))
        products = products_by_input(model, excluded)
        if not products:
            return state
        values = _value_outputs(model, products)
        wanted = dict.fromkeys([*products, *values.values()], (ExtremesOf(),))
        halves = calibration.observe(model, wanted, CHANNELS, again=True).halves
        original = Original(model, calibration.first, calibration.custom_ops)
        terms = self._terms(state.choices.weights.spec.num_bits)
        of_values = {name: halves[value] for name, value in values.items()}
        changed, scales = _smooth_values(model, products, of_values, terms)
        try:
            original.require_same("SmoothValues", changed)
        except EquivalenceError:  # heads in another order than they look
            changed, scales = model.clone(), {}
        for source, scale in scales.items():
            halves[source] = (halves[source][0].over(scale), halves[source][1].over(scale))
        chosen = _choose(products_by_input(changed, excluded), halves, terms)
        smooth = {value: smoothing for value, smoothing in chosen.items() if not len(smoothing.aside)}
        apart = {value: smoothing.aside for value, smoothing in chosen.items() if len(smoothing.aside)}
        names = {value: tuple(name_of(node) for node in products[value]) for value in chosen}
        SmoothActivations({value: smoothing.scale for value, smoothing in smooth.items()}, names)(changed)
        leaving = {names[value][0]: channels for value, channels in apart.items()}
        SplitOutliers(leaving, self._limits(apart, halves, names))(changed)
        original.require_same("SmoothProducts", changed)
        return replace(
            state,
            model=changed,
            aside=apart,
            beside=frozenset(name + SUFFIX for name in leaving),
            notes=(*state.notes, *_notes(scales, smooth, apart)),
            evened_out=state.evened_out or bool(scales or smooth),
        )

    def _terms(self, weight_bits: int) -> _TermsFor:
        """Return a function for the terms of one tensor: short weights can take over less of what activations lose."""

        def terms(worth_db: float, *, may_stand_aside: bool) -> SmoothingTerms:
            allowed = may_stand_aside and self.outliers != "inside"
            return SmoothingTerms(worth_db, allowed, (1 << (weight_bits - 1)) - 1)

        return terms

    def _limits(
        self, apart: Mapping[str, Any], halves: Mapping[str, Halves], names: Mapping[str, tuple[str, ...]]
    ) -> dict[str, tuple[float, float]]:
        """Return the limits of the channels that stay, by product, where the rest is clipped."""
        if self.outliers != "clipped":
            return {}
        inner = {value: halves[value][0].merge(halves[value][1]).without(aside) for value, aside in apart.items()}
        return {names[value][0]: (float(rest.low.min()), float(rest.high.max())) for value, rest in inner.items()}


def products_by_input(model: ir.Model, excluded: Excludes) -> dict[str, list[ir.Node]]:
    """Group products with constant weights on the right by the value they read."""
    products: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type == "MatMul" and not node.domain else None
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or not weight.size or excluded(node):
            continue
        products.setdefault(str(node.inputs[0].name), []).append(node)  # type: ignore[union-attr]
    return products


def _value_outputs(model: ir.Model, products: Mapping[str, list[ir.Node]]) -> dict[str, str]:
    """Map products behind an attention to the value, bias included, that reaches them; behind a gate to their input."""
    nodes = {name_of(node): node for node in model.graph}
    known = {name_of(node) for nodes in products.values() for node in nodes}
    pairs = {last: made for last, made in value_projections(model).items() if {last, made} <= known}
    mixed = {last: name_of(bias_add(nodes[made]) or nodes[made]) for last, made in pairs.items()}
    gated = [last for last, made in gated_projections(model).items() if {last, made} <= known]
    return mixed | {last: str(nodes[last].inputs[0].name) for last in gated}  # type: ignore[union-attr]


def _smooth_values(
    model: ir.Model, products: Mapping[str, list[ir.Node]], halves: Mapping[str, Halves], terms: _TermsFor
) -> tuple[ir.Model, dict[str, NDArray[np.float64]]]:
    """Move scales through attention; return the model, and by what the inputs of the products behind shrank."""
    changed = model.clone()
    scales, sources = {}, {}
    for source, nodes in products.items():
        name = name_of(nodes[0])
        if len(nodes) > 1 or name not in halves:
            continue
        smoothing = best_smoothing(_readers(nodes), halves[name], terms(FREE_DB, may_stand_aside=False))
        if smoothing.gain_db > 0:
            scales[name], sources[source] = smoothing.scale, smoothing.scale
    SmoothValues(scales)(changed)
    return changed, sources


def _choose(
    products: Mapping[str, list[ir.Node]], halves: Mapping[str, Halves], terms: _TermsFor
) -> dict[str, Smoothing]:
    smoothings = {}
    for source, nodes in products.items():
        value, readers = nodes[0].inputs[0], _readers(nodes)
        channels, features = readers[0].reach.shape[1:]
        free = value is not None and normalization_for(value, nodes) is not None
        # In float beside a narrow product they cost less than dividing its wide input would.
        cheap = len(nodes) == 1 and features <= channels and can_split(nodes[0])
        alone = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
        wanted = terms(FREE_DB if free else WORTH_DB, may_stand_aside=cheap and alone)
        smoothing = best_smoothing(readers, halves[source], wanted)
        if smoothing.gain_db > 0:
            smoothings[source] = smoothing
    return smoothings


def _readers(nodes: list[ir.Node]) -> list[Reader]:
    weights = [constant(node.inputs[1]) for node in nodes]
    return [Reader.of_matrix(weight) for weight in weights if weight is not None]


def _notes(
    scales: Mapping[str, Any], smooth: Mapping[str, Smoothing], apart: Mapping[str, NDArray[np.int64]]
) -> tuple[str, ...]:
    notes = []
    if scales:
        notes.append(f"channels of {len(scales)} attention and gated values evened out within the weights around them")
    if smooth:
        gains = sorted(each.gain_db for each in smooth.values())
        notes.append(
            f"{len(smooth)} activations smoothed: expected error of the layers behind {gains[0]:.1f} to "
            f"{gains[-1]:.1f} dB lower"
        )
    if apart:
        listed = ", ".join(f"{value} {list(map(int, channels))}" for value, channels in apart.items())
        notes.append(f"outlier channels computed in float beside integer products: {listed}")
    return tuple(notes)
