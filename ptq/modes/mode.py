"""Protocol of modes, and what most of them have in common."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from ptq.calibration.record import CalibrationStatistics
from ptq.calibration.statistics import Wanted
from ptq.core.plan import QuantPlan
from ptq.core.statistics import Histogram
from ptq.passes import PREPARE, PREPARE_BLOCKS, PREPARE_SMALL, InsertQdq, PrepareStep, UseNative
from ptq.passes.float_layers import float_layers
from ptq.passes.placement import Placement
from ptq.passes.selection import Exclusions, names_matching
from ptq.recipe import Recipe
from ptq.solving.grids import wanted_of
from ptq.target import Target
from ptq.transforms.prune_channels import PruneChannels
from ptq.transforms.rewritten import Rewritten, Transform
from ptq.transforms.squeeze import Squeeze


class Mode(Protocol):
    """Protocol of modes, the rows of their table; see `RecipeMode` for what they have in common."""

    @property
    def rounds_activations(self) -> bool:
        """Whether sums are made of codes."""
        ...

    @property
    def exclusions(self) -> Exclusions:
        """Patterns of what the user leaves in float."""
        ...

    @property
    def steps(self) -> tuple[PrepareStep, ...]:
        """Passes that bring a model into normal form."""
        ...

    @property
    def squeezes(self) -> tuple[Transform, ...]:
        """Transforms that remove channels, if the recipe wants that."""
        ...

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Transforms that make the float model easier to quantize, in order."""
        ...

    def place(self, state: Rewritten, floats: Mapping[str, str] | None = None) -> Placement:
        """Decide what runs on integers.

        Args:
            state: The model.
            floats: Layers that are left in float besides the user's exclusions -> why.
        """
        ...

    def wanted(self, state: Rewritten, placement: Placement) -> Wanted:
        """Return the statistics that the calibration set is asked for."""
        ...

    def too_coarse(
        self,
        state: Rewritten,
        placement: Placement,
        histograms: Mapping[str, Histogram],
        statistics: CalibrationStatistics,
    ) -> Mapping[str, str]:
        """Find layers that the integers of this mode would ruin, as the data shows, with the reason for each."""
        ...

    def lower(self, model: ir.Model, placement: Placement, plan: QuantPlan) -> ir.Model:
        """Turn a float model into integers, on a copy."""
        ...


@dataclass(frozen=True)
class RecipeMode:
    """Base of modes: what a recipe says alike in all of them.

    Attributes:
        recipe: Decisions.
        target: Where the model will run.
    """

    recipe: Recipe
    target: Target

    @property
    def rounds_activations(self) -> bool:
        """Whether sums are made of codes."""
        return True

    @property
    def exclusions(self) -> Exclusions:
        """Patterns of what the user leaves in float, those of layer rules included."""
        rules = tuple((rule.match, rule.skip) for rule in self.recipe.layers if rule.skip is not None)
        planned = () if self.recipe.bit_plan is None else tuple(map(glob.escape, self.recipe.bit_plan.floats))
        return Exclusions(self.recipe.exclude + planned, rules, self.recipe.only)

    def floats(self, state: Rewritten, found: Mapping[str, str] | None) -> dict[str, str]:
        """Return the nodes on float kernels with weights on codes -> why: those of the recipe, and those found."""
        named: dict[str, str] = {}
        for rule in self.recipe.layers:
            if rule.float_kernel is not None:
                names = names_matching(state.model, rule.match, "layers")
                named |= dict.fromkeys(names, f"left to a float kernel by {rule.match!r}")
                named = named if rule.float_kernel else {name: named[name] for name in named.keys() - names}
        return named | dict(state.floats) | dict(found or {})

    @property
    def steps(self) -> tuple[PrepareStep, ...]:
        """Passes that bring a model into normal form: short words and scales per block need a newer opset."""
        return PREPARE_BLOCKS if self.recipe.has_blocks else PREPARE_SMALL if self.recipe.has_small_weights else PREPARE

    @property
    def squeezes(self) -> tuple[Transform, ...]:
        """Transforms that come before all others, if the recipe wants them."""
        share, most, lanes = self.recipe.squeeze_share, self.recipe.max_macs, self.target.channel_lanes
        squeezes: tuple[Transform, ...] = () if share is None else (Squeeze(share, lanes),)
        return squeezes if most is None else (*squeezes, PruneChannels(most, lanes))

    def wanted(self, state: Rewritten, placement: Placement) -> Wanted:
        """Return distributions for all values with a grid, and channel means for biases."""
        return wanted_of(placement, state.aside, float_layers(state.model, placement))

    def too_coarse(
        self,
        _state: Rewritten,
        _placement: Placement,
        _histograms: Mapping[str, Histogram],
        _statistics: CalibrationStatistics,
    ) -> Mapping[str, str]:
        """Return no layer: nothing has a grid that was fixed beforehand."""
        return {}

    def lower(self, model: ir.Model, placement: Placement, plan: QuantPlan) -> ir.Model:
        """Write the plan into a copy, and operators of our own where the target has them."""
        lowered = model.clone()
        InsertQdq(plan, placement)(lowered)
        if self.target.native:
            UseNative(plan, self.target.native_words, placement.tied)(lowered)
        return lowered
