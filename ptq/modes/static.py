"""Static mode: integers with ranges that are fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from ptq.calibration.record import CalibrationStatistics
from ptq.calibration.statistics import ExtremesOf, LevelOf, Wanted
from ptq.codecs.bitplanes import BYTE
from ptq.core.plan import QuantPlan
from ptq.core.statistics import Histogram
from ptq.modes.mode import RecipeMode
from ptq.passes import PadChannels, PrepareStep
from ptq.passes.integer_lstm import IntegerLstm
from ptq.passes.placement import Placement
from ptq.passes.placing import place
from ptq.passes.unused import RemoveUnused
from ptq.solving.grids import choose_grids, low_sqnr_inputs
from ptq.solving.levels import lone_convolutions, too_uneven
from ptq.solving.wide_channels import signals, too_wide
from ptq.transforms import (
    EqualizeConvs,
    FloatIslands,
    GuardRecurrent,
    PlainSlopes,
    SmoothProducts,
    SplitCenters,
    Transform,
)
from ptq.transforms.rewritten import Rewritten


@dataclass(frozen=True)
class StaticRanges(RecipeMode):
    """Mode in which layers and what lies between run on integers; calibration chooses a grid for every activation."""

    @property
    def steps(self) -> tuple[PrepareStep, ...]:
        """Passes that bring a model into normal form, and fill the vectors of depthwise kernels."""
        steps, lanes = super().steps, self.target.depthwise_lanes
        return steps if lanes == 1 else (*steps, PadChannels(lanes))

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Transforms that squeeze, equalize convolutions, split wide centers and smooth products."""
        kernel = not self.target.saturates and self.recipe.weights.bits == BYTE and self.recipe.activation_bits == BYTE
        guard = GuardRecurrent(self.exclusions, self.recipe.min_input_sqnr_db if kernel else None)
        last: tuple[Transform, ...] = (PlainSlopes(self.target.depthwise_lanes), *self._islands)
        if not self.recipe.equalize:
            return (*self.squeezes, guard, SplitCenters(), *last)
        convs = EqualizeConvs(self.exclusions, native=self.target.native)
        return (*self.squeezes, guard, convs, SplitCenters(), SmoothProducts(self.exclusions), *last)

    @property
    def _islands(self) -> tuple[FloatIslands, ...]:
        """Leave in float what is faster there, where both are as long: float kernels keep weights of 8 bits."""
        recipe, costs = self.recipe, self.target.costs
        plain = recipe.optimize == "accuracy" and recipe.weights.bits == BYTE == recipe.activation_bits
        return () if costs is None or not plain else (FloatIslands(self.place, costs, recipe.latency_batch),)

    def place(self, state: Rewritten, floats: Mapping[str, str] | None = None) -> Placement:
        """Place integers in every layer that has a kernel, and in what lies between."""
        excluded, more = state.excludes(self.exclusions), self.floats(state, floats)
        placed = place(state.model, excluded, native=self.target.native, floats=more).with_axes(state.axes)
        left = {name: why for name, why in placed.left_float.items() if name not in state.recurrent}
        return replace(placed, left_float=left)

    def wanted(self, state: Rewritten, placement: Placement) -> Wanted:
        """Return distributions, means, energies of depthwise layers' channels, levels of lone convolutions."""
        wanted = dict(super().wanted(state, placement))
        for name in dict.fromkeys(signals(state.model, placement).values()):
            wanted[name] = (*wanted.get(name, ()), ExtremesOf(1))
        ends = lone_convolutions(state.model, placement).values()
        for name in dict.fromkeys(value for pair in ends for value in pair):
            wanted[name] = (*wanted.get(name, ()), LevelOf())
        return wanted

    def lower(self, model: ir.Model, placement: Placement, plan: QuantPlan) -> ir.Model:
        """Write the plan into a copy, operators of our own where the target has them, and integer LSTMs."""
        lowered = super().lower(model, placement, plan)
        if IntegerLstm(plan, placement)(lowered).modified:
            RemoveUnused()(lowered)
        return lowered

    def too_coarse(
        self,
        state: Rewritten,
        placement: Placement,
        histograms: Mapping[str, Histogram],
        statistics: CalibrationStatistics,
    ) -> Mapping[str, str]:
        """Find layers whose input keeps too little on one grid, as a whole or in most of its channels."""
        least_db = self.recipe.min_input_sqnr_db
        grids = choose_grids(placement, histograms, state.choices)
        wide = too_wide(state.model, placement, grids, statistics.halves, least_db)
        uneven = too_uneven(state.model, placement, grids, statistics.levels, least_db)
        return {**wide, **uneven, **low_sqnr_inputs(placement, histograms, state.choices, least_db)}
