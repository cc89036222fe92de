"""Texts of the command line: a goal, or a rule for some layers, in one option."""

from __future__ import annotations

import re
from typing import Any

from ptq.core.errors import RecipeError
from ptq.recipe.toml import recipe_from
from ptq.recipe.values import LayerRule

GOALS = {"sqnr": "min_sqnr_db", "agreement": "min_agreement", "drop": "max_drop", "latency": "max_latency_ratio"}


FLAGS = ("skip", "float_kernel")
"""Keys of a rule that need no value."""


def parse_goal(text: str, option: str = "--goal") -> dict[str, float]:
    """Read a goal as the command line takes it, as a field of `Goals`.

    Args:
        text: `sqnr >= 30`, `agreement >= 0.99`, `top1 drop <= 0.5` (points, or `%`), `latency <= 0.5` (over float).
        option: How the command line calls it.

    Raises:
        RecipeError: It is something else.

    Example:
        >>> parse_goal("top1 drop <= 0.5")
        {'max_drop': 0.005}
    """
    parts = re.fullmatch(
        r"\s*(?:top-?1\s+|metric\s+)?(sqnr|agreement|drop|latency)\s*(>=|<=)\s*([\d.]+)\s*(%|dB)?\s*", text
    )
    number = None if parts is None else _float_or_none(parts[3])
    wanted = {"sqnr": ">=", "agreement": ">=", "drop": "<=", "latency": "<="}
    units = {"sqnr": (None, "dB"), "agreement": (None, "%"), "drop": (None, "%"), "latency": (None, "%")}
    if parts is None or number is None or parts[2] != wanted[parts[1]] or parts[4] not in units[parts[1]]:
        raise RecipeError(
            f"{option} is {text!r:.80}; expected for example 'sqnr >= 30', 'agreement >= 0.99', 'top1 drop <= 0.5' "
            "(points) or 'latency <= 0.5'"
        )
    points = parts[1] == "drop" or parts[4] == "%"
    return {GOALS[parts[1]]: number / 100 if points else number}


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse_rule(text: str) -> LayerRule:
    """Read a layer rule as the command line takes it, for example `conv1:bits=8,method=rtn` or `re:head.*:skip`.

    Raises:
        RecipeError: A key or value is unknown, or there is none.
    """
    match, _, settings = text.rpartition(":")
    table: dict[str, Any] = {"match": match}
    for setting in settings.split(","):
        key, _, value = setting.partition("=")
        table[key.strip()] = True if key.strip() in FLAGS and not value else _literal(value.strip())
    if not match or "" in table:
        raise RecipeError(f"--layer is {text!r}; expected PATTERN:KEY=VALUE,... for example conv1:bits=8,method=rtn")
    return recipe_from({"layers": [table]}, f"--layer {text!r}").layers[0]


def _literal(text: str) -> int | bool | str:
    return int(text) if text.isdecimal() and len(text) < 20 else {"true": True, "false": False}.get(text, text)
