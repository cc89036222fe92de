"""Static mode: integers with ranges that are fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptq.calibration.statistics import ExtremesOf, Wanted
from ptq.core.statistics import Histogram
from ptq.modes.mode import RecipeMode
from ptq.passes import PadChannels, PrepareStep
from ptq.passes.placement import Placement
from ptq.passes.placing import place
from ptq.solving.grids import choose_grids, low_sqnr_inputs
from ptq.solving.wide_channels import Halves, signals, too_wide
from ptq.transforms import EqualizeConvs, GuardRecurrent, SmoothProducts, SplitCenters, Transform
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
        guard = GuardRecurrent(self.exclusions)
        if not self.recipe.equalize:
            return (*self.squeezes, guard, SplitCenters())
        convs = EqualizeConvs(self.exclusions, native=self.target.native)
        return (*self.squeezes, guard, convs, SplitCenters(), SmoothProducts(self.exclusions))

    def place(self, state: Rewritten, floats: Mapping[str, str] | None = None) -> Placement:
        """Place integers in every layer that has a kernel, and in what lies between."""
        excluded, more = state.excludes(self.exclusions), self.floats(state, floats)
        return place(state.model, excluded, native=self.target.native, floats=more).with_axes(state.axes)

    def wanted(self, state: Rewritten, placement: Placement) -> Wanted:
        """Return distributions, means, and energies of the channels that depthwise layers read."""
        wanted = dict(super().wanted(state, placement))
        for name in dict.fromkeys(signals(state.model, placement).values()):
            wanted[name] = (*wanted.get(name, ()), ExtremesOf(1))
        return wanted

    def too_coarse(
        self, state: Rewritten, placement: Placement, histograms: Mapping[str, Histogram], halves: Halves
    ) -> Mapping[str, str]:
        """Find layers whose input keeps too little on one grid, as a whole or in most of its channels."""
        least_db = self.recipe.min_input_sqnr_db
        grids = choose_grids(placement, histograms, state.choices)
        wide = too_wide(state.model, placement, grids, halves, least_db)
        return {**wide, **low_sqnr_inputs(placement, histograms, state.choices, least_db)}
