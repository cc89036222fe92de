"""Static mode: integers with ranges that are fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptq.core.statistics import Histogram
from ptq.modes.mode import RecipeMode
from ptq.passes.linear import name_of
from ptq.passes.placement import Placement, place
from ptq.solving.grids import low_sqnr_inputs
from ptq.transforms import EqualizeConvs, SmoothProducts, SplitCenters, Transform
from ptq.transforms.rewritten import Rewritten


@dataclass(frozen=True)
class StaticRanges(RecipeMode):
    """Mode in which layers and what lies between run on integers; calibration chooses a grid for every activation."""

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Transforms that equalize convolutions, split wide centers and smooth products."""
        if not self.recipe.equalize:
            return (SplitCenters(),)
        convs = EqualizeConvs(self.exclusions, native=self.target.native)
        return (convs, SplitCenters(), SmoothProducts(self.exclusions))

    def place(self, state: Rewritten, floats: Mapping[str, str] | None = None) -> Placement:
        """Place integers in every layer that has a kernel, and in what lies between."""
        excluded, more = state.excludes(self.exclusions), floats or {}
        return place(state.model, lambda node: excluded(node) or more.get(name_of(node)), native=self.target.native)

    def too_coarse(
        self, state: Rewritten, placement: Placement, histograms: Mapping[str, Histogram]
    ) -> Mapping[str, str]:
        """Find layers whose input keeps too little on one grid."""
        return low_sqnr_inputs(placement, histograms, state.choices, self.recipe.min_input_sqnr_db)
