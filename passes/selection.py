"""Selection of nodes that the user wants left in float: by name, operator type, glob or regular expression."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ptq.core.errors import RecipeError
from ptq.passes.linear import constant, name_of
from ptq.passes.placement import Excludes
from ptq.passes.stored import RECURRENT
from ptq.target import LINEAR_OPS

REGEX = "re:"


@dataclass(frozen=True)
class Exclusions:
    """Patterns of what the user leaves in float; what they match depends on the graph as it is by then.

    Attributes:
        patterns: As in `select_nodes`.
    """

    patterns: tuple[str, ...] = ()

    def on(self, model: ir.Model) -> Excludes:
        """Select the nodes of a graph that are left in float.

        Raises:
            RecipeError: A pattern matches nothing, or is no regular expression.
        """
        return select_nodes(model, self.patterns)


def select_nodes(model: ir.Model, patterns: Sequence[str]) -> Excludes:
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
    chosen = {pattern: names_matching(model, pattern, "exclude") for pattern in patterns}

    def excluded(node: ir.Node) -> str | None:
        found = [pattern for pattern, names in chosen.items() if name_of(node) in names]
        return f"excluded by {found[0]!r}" if found else None

    return excluded


def sites_matching(model: ir.Model, pattern: str) -> frozenset[str]:
    """Return the weights that a layer rule's pattern means: linear layers, else what Gather or an LSTM reads.

    Raises:
        RecipeError: It matches none, or is no regular expression.
    """
    matching = names_matching(model, pattern, "layers")
    names = matching & linear_nodes(model).keys()
    names = names or frozenset(_rows_read(model, matching))
    if not names:
        raise RecipeError(
            f"layers: {pattern!r} matches {len(matching)} nodes, but none of {', '.join(sorted(LINEAR_OPS))}"
        )
    return names


def linear_nodes(model: ir.Model) -> dict[str, ir.Node]:
    """Nodes that could be linear layers, by name."""
    return {name_of(node): node for node in model.graph if node.op_type in LINEAR_OPS and not node.domain}


def _rows_read(model: ir.Model, names: frozenset[str]) -> Iterator[str]:
    """Yield the constants that nodes pick rows of, or multiply with step by step."""
    for node in model.graph:
        read = node.inputs[:1] if node.op_type == "Gather" else node.inputs[1:3] if node.op_type in RECURRENT else ()
        if name_of(node) in names and not node.domain:
            yield from (str(value.name) for value in read if value is not None and constant(value) is not None)


def names_matching(model: ir.Model, pattern: str, where: str) -> frozenset[str]:
    """Find the nodes that a pattern means.

    Args:
        model: Prepared model.
        pattern: As in `select_nodes`.
        where: The recipe's key, for messages.

    Returns:
        Their names.

    Raises:
        RecipeError: It matches nothing, or is no regular expression.
    """
    test = _compile(pattern, where)
    names = frozenset(name_of(node) for node in model.graph if any(test(word) for word in _words(node)))
    if not names:
        known = ", ".join(sorted({node.op_type for node in model.graph})[:8])
        raise RecipeError(f"{where}: {pattern!r} matches no node; expected a node name or one of the types {known}")
    return names


def outermost(model: ir.Model) -> frozenset[str]:
    """Return the linear layers with no other linear layer before them, or none behind."""
    nodes = [node for node in model.graph if node.outputs]
    linear = {node for node in nodes if not node.domain and node.op_type in LINEAR_OPS}
    behind = _reached(nodes, linear, lambda node: [v.producer() for v in node.inputs if v is not None])
    before = _reached(nodes[::-1], linear, lambda node: [use.node for v in node.outputs for use in v.uses()])
    return frozenset(name_of(node) for node in linear if node not in behind or node not in before)


def _reached(
    nodes: list[ir.Node], linear: set[ir.Node], neighbors: Callable[[ir.Node], list[ir.Node | None]]
) -> set[ir.Node]:
    """Return the nodes with a linear layer among their neighbors, or neighbors of those, in the order given."""
    reached = set[ir.Node]()
    for node in nodes:
        if any(other in linear or other in reached for other in neighbors(node) if other is not None):
            reached.add(node)
    return reached


def _words(node: ir.Node) -> list[str]:
    return [node.op_type, *([node.name] if node.name else []), *(str(v.name) for v in node.outputs if v.name)]


def _compile(pattern: str, where: str) -> Callable[[str], bool]:
    if not pattern.startswith(REGEX):
        return lambda word: fnmatch.fnmatchcase(word, pattern)
    try:
        compiled = re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise RecipeError(f"{where}: {pattern!r} is no regular expression: {error}") from error
    return lambda word: compiled.fullmatch(word) is not None
