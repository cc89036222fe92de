"""Which nodes the user wants left in float: by name, operator type, glob or regular expression."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ptq.core.errors import RecipeError
from ptq.passes.placement import Selector

REGEX = "re:"


def select_nodes(model: ir.Model, patterns: Sequence[str]) -> Selector:
    """Compile exclusion patterns.

    Args:
        model: Prepared model.
        patterns: Each names an output value, a node, an operator type, or a glob over them; after `re:` comes a
            regular expression that has to match a whole name.

    Returns:
        The selector.

    Raises:
        RecipeError: A pattern matches nothing, or is no regular expression.
    """
    tests = [(pattern, _compile(pattern)) for pattern in patterns]
    for pattern, test in tests:
        if not any(test(word) for node in model.graph for word in _words(node)):
            known = ", ".join(sorted({node.op_type for node in model.graph})[:8])
            raise RecipeError(f"exclude: {pattern!r} matches no node; expected a node name or one of the types {known}")

    def left_out(node: ir.Node) -> str | None:
        for pattern, test in tests:
            if any(test(word) for word in _words(node)):
                return f"excluded by {pattern!r}"
        return None

    return left_out


def _words(node: ir.Node) -> list[str]:
    return [node.op_type, *([node.name] if node.name else []), *(str(v.name) for v in node.outputs if v.name)]


def _compile(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith(REGEX):
        return lambda word: fnmatch.fnmatchcase(word, pattern)
    try:
        compiled = re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise RecipeError(f"exclude: {pattern!r} is no regular expression: {error}") from error
    return lambda word: compiled.fullmatch(word) is not None
