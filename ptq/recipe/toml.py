"""Recipes read from TOML and nested tables, and written to them."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cattrs
from cattrs.errors import ClassValidationError

from ptq.allocation.bit_plan import BitPlan
from ptq.calibration.observers import Observer
from ptq.core.errors import RecipeError
from ptq.core.family import members, tag_of
from ptq.core.strict import explained, strict_converter
from ptq.recipe.values import Recipe
from ptq.weights import WeightMethod

MAX_BYTES = 2**20
"""Most bytes of a recipe file."""


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from TOML.

    Raises:
        RecipeError: The file is missing or not TOML, or a key is unknown or of the wrong type; names the key path.
    """
    try:
        entry = path.stat()
        if not stat.S_ISREG(entry.st_mode) or entry.st_size > MAX_BYTES:
            raise RecipeError(f"{path}: cannot read the recipe: expected a regular file of at most {MAX_BYTES} bytes")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # those of TOML and of Unicode are ValueErrors too
        raise RecipeError(f"{path}: not TOML: {error}") from error
    return recipe_from(table, str(path), path.parent)


def recipe_from(table: dict[str, Any], where: str, folder: Path | None = None) -> Recipe:
    """Turn nested tables into a recipe; unknown keys are refused.

    Args:
        table: The recipe, its bit plan as a table or as the path of a file.
        where: What it is called in messages.
        folder: Where such a path starts; None refuses paths, as a table may come from anybody.

    Raises:
        RecipeError: A key is unknown, or of the wrong type, or there is no bit plan where one should be.
    """
    try:
        return _converter(folder).structure(table, Recipe)
    except ClassValidationError as error:
        raise RecipeError(explained(error, where)) from error


def recipe_to(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as nested tables, methods tagged: what the card echoes back."""
    table: dict[str, Any] = _without_none(_converter().unstructure(recipe))
    return table


def _without_none(value: Any) -> Any:
    """Drop keys without a value: TOML has no word for nothing."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list | tuple) else value


def recipe_toml(table: Mapping[str, Any]) -> str:
    """Write nested tables as the TOML that `load_recipe` reads.

    Args:
        table: From `recipe_to`.
    """
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        tables = value if isinstance(value, list) else [value]
        for each in tables if value and _is_table(value) else ():
            lines += ["", f"[{key}]" if each is value else f"[[{key}]]"]
            lines += [f"{name} = {_toml(own)}" for name, own in each.items()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _toml(value: Any) -> str:
    """Write a value in one line; JSON writes strings, numbers and truths as TOML does, but for one character."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


def _converter(folder: Path | None = None) -> cattrs.Converter:
    converter = strict_converter(forbid_extra_keys=True)
    converter.register_structure_hook(BitPlan | None, partial(_bit_plan, folder))
    converter.register_unstructure_hook(BitPlan | None, lambda plan: None if plan is None else plan.to_table())
    for union in (Observer, WeightMethod):
        _register_tagged(converter, union)
    return converter


def _bit_plan(folder: Path | None, value: Any, _: Any) -> BitPlan:
    """A plan as a table, or in a file beside the recipe."""
    if not isinstance(value, str):
        return BitPlan.from_table(value)
    if folder is None:
        raise TypeError(f"expected a table, found {value!r:.80}; only a recipe's file names a bit plan by its path")
    if not _is_inside(folder / value, folder):
        raise RecipeError(f"bit plan {value!r:.80} lies outside the recipe's folder; put it beside the recipe")
    return BitPlan.load(folder / value)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path stays in a folder, links included: recipes come from anywhere, other files are none of theirs."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a byte that no path has, a link to itself
        return False


def _register_tagged(converter: cattrs.Converter, union: Any) -> None:
    """Read and write a family as a table whose `method` names the member; a bare string means its defaults."""
    known = {tag_of(member): member for member in members(union)}

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, str | dict):
            raise TypeError(f"expected the name of a method or a table with one, found {value!r:.80}")
        table = {"method": value} if isinstance(value, str) else dict(value)
        tag = table.pop("method", None)
        if not isinstance(tag, str) or tag not in known:
            raise ValueError(f"method is {tag!r}, expected one of {', '.join(known)}")
        plain = cattrs.Converter(forbid_extra_keys=True)
        return plain.structure(table, known[tag])

    def unstructure(value: Any) -> dict[str, Any] | None:
        return None if value is None else {"method": tag_of(type(value)), **asdict(value)}

    converter.register_structure_hook(union, structure)
    converter.register_structure_hook(union | None, structure)
    converter.register_unstructure_hook(union, unstructure)
    converter.register_unstructure_hook(union | None, unstructure)
    for member in known.values():
        converter.register_unstructure_hook(member, unstructure)
