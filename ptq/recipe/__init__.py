"""Recipes: all decisions of one run as a value."""

from ptq.recipe.values import Goals, GranularityName, LayerRule, Optimize, Recipe, Split, Weights

__all__ = ["Goals", "GranularityName", "LayerRule", "Optimize", "Recipe", "Split", "Weights"]
