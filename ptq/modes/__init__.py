"""Modes: integers with ranges fixed beforehand, with ranges taken at run time, or in nothing but weights.

A mode is one file with one frozen dataclass: which transforms come first, what is placed, what is looked at, how it is
lowered. Nothing else asks which mode a run is in.
"""

from __future__ import annotations

from ptq.modes.dynamic import DynamicRanges
from ptq.modes.mode import Mode
from ptq.modes.static import StaticRanges
from ptq.modes.weight_only import WeightOnly
from ptq.recipe import Recipe
from ptq.target import Target


def mode_of(recipe: Recipe, target: Target) -> Mode:
    """Return the mode that a recipe asks for."""
    kind = WeightOnly if recipe.weight_only else DynamicRanges if recipe.is_dynamic else StaticRanges
    return kind(recipe, target)


__all__ = ["DynamicRanges", "Mode", "StaticRanges", "WeightOnly", "mode_of"]
