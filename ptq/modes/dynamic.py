"""Dynamic mode: integers with ranges that are taken while the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ptq.core.plan import QuantPlan
from ptq.modes.mode import RecipeMode
from ptq.passes import InsertDynamic, InsertQdq
from ptq.passes.placement import Placement
from ptq.passes.placing import place_weights
from ptq.transforms import GuardRecurrent, SmoothProducts, SplitCenters, Transform
from ptq.transforms.rewritten import Rewritten
from ptq.transforms.smooth_products import Outliers


@dataclass(frozen=True)
class DynamicRanges(RecipeMode):
    """Mode in which products run on integers, inputs rounded to the range they have then; convolutions stay float."""

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Transforms that squeeze, split wide centers and smooth products.

        Our own products have a range for every row, so outliers stay inside them.
        """
        guard = GuardRecurrent(self.exclusions, self.recipe.min_input_sqnr_db, dynamic=True)
        if not self.recipe.equalize:
            return (*self.squeezes, guard, SplitCenters())
        outliers: Outliers = "inside" if self.target.native else "clipped"
        return (*self.squeezes, guard, SplitCenters(), SmoothProducts(self.exclusions, outliers))

    def place(self, state: Rewritten, floats: Mapping[str, str] | None = None) -> Placement:
        """Place codes in products with their weight on the right."""
        excluded, more = state.excludes(self.exclusions), self.floats(state, floats)
        return place_weights(state.model, excluded, only_products=True, floats=more).with_axes(state.axes)

    def lower(self, model: ir.Model, placement: Placement, plan: QuantPlan) -> ir.Model:
        """Write the plan into a copy, with what takes ranges in front of its products."""
        lowered = model.clone()
        InsertQdq(plan, placement)(lowered)
        InsertDynamic(plan, placement, self.target.native_words)(lowered)
        return lowered
