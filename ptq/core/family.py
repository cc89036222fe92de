"""Families: a union of frozen dataclasses, one file each, whose file names are their names in recipes."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_args

from ptq.core.errors import RecipeError


def members(union: Any) -> tuple[type, ...]:
    """Return the classes of a family; a family of one is no union yet."""
    return get_args(union) or (union,)


def tag_of(member: type) -> str:
    """Return the name of a method in recipes and on the command line: its file's name."""
    return member.__module__.rsplit(".", 1)[-1]


def member_named(union: Any, tag: str) -> Any:
    """Return an instance of the member with that tag, with its defaults.

    Raises:
        RecipeError: No such member.
    """
    known = {tag_of(member): member for member in members(union)}
    if tag not in known:
        raise RecipeError(f"method is {tag!r}; expected one of {', '.join(known)}; see `ptq methods`")
    return known[tag]()


def describe_method(member: type) -> tuple[str, str, str]:
    """Return tag, settings with defaults, and first line of the docstring."""
    settings = ", ".join(f"{f.name}={getattr(member(), f.name)!r}" for f in fields(member))
    return tag_of(member), settings, (inspect.getdoc(member) or "").split("\n")[0]
