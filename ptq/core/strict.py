"""Values made of tables from a file: no type is taken for another."""

from __future__ import annotations

from typing import Any

import cattrs
from cattrs.errors import BaseValidationError
from cattrs.v import format_exception

from ptq.core.errors import PtqError


def strict_converter(*, forbid_extra_keys: bool) -> cattrs.Converter:
    """Make a converter that takes no type for another.

    Args:
        forbid_extra_keys: Refuse keys that a value does not know.
    """
    converter = cattrs.Converter(forbid_extra_keys=forbid_extra_keys)
    converter.register_structure_hook(float, _number)
    for kind in (int, str, bool):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _texts)
    return converter


def explained(error: BaseValidationError, where: str) -> str:
    """Describe what is wrong in one line, each fault with its place."""
    reasons = "; ".join(cattrs.transform_error(error, path=where, format_exception=_explain))
    return " ".join(reasons.split())


def _explain(error: BaseException, kind: type | None) -> str:
    """Word one fault: our own hooks say best what they expected, the library words the rest."""
    plain = isinstance(error, PtqError) or type(error) in (ValueError, TypeError, Exception)
    return str(error) if plain else format_exception(error, kind)


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {value!r:.80}")
    return float(value)


def _texts(value: Any, _: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):  # a text is a row of texts too
        raise TypeError(f"expected a list of texts, found {value!r:.80}")
    return tuple(value)


def _exactly(kind: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, found {value!r:.80}")
        return value

    return structure
