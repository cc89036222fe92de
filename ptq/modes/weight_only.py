"""Weight-only mode: weights on codes, everything else in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptq.modes.mode import RecipeMode
from ptq.passes.placement import Placement
from ptq.passes.placing import place_weights
from ptq.transforms import GuardRecurrent, ScaleSalient, SplitCenters, Transform
from ptq.transforms.rewritten import Rewritten


@dataclass(frozen=True)
class WeightOnly(RecipeMode):
    """Mode in which weights shrink in the file; they are decoded at load, or by a kernel that reads short words."""

    @property
    def rounds_activations(self) -> bool:
        """Whether sums are made of codes: never, as inputs stay float."""
        return False

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Transforms that squeeze, split wide centers and scale weights that meet the largest activations."""
        guard = GuardRecurrent(self.exclusions)
        salient = (ScaleSalient(self.exclusions),) if self.recipe.equalize else ()
        return (*self.squeezes, guard, SplitCenters(), *salient)

    def place(self, state: Rewritten, floats: Mapping[str, str] | None = None) -> Placement:
        """Place codes in every layer."""
        return place_weights(state.model, state.excludes(self.exclusions), floats=floats or {}).with_axes(state.axes)
