"""Selection of nodes that the user wants left in float: by name, module, type, glob or regular expression."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ptq.core.errors import RecipeError
from ptq.passes.linear import constant, name_of
from ptq.passes.modules import module_of
from ptq.passes.placement import Excludes
from ptq.passes.stored import RECURRENT
from ptq.target import LINEAR_OPS

REGEX = "re:"
GLOB = frozenset("*?[")

NEAREST = 3
"""Names that are proposed where a pattern matches nothing."""


@dataclass(frozen=True)
class Exclusions:
    """Patterns of what the user leaves in float; what they match depends on the graph as it is by then.

    Attributes:
        patterns: Of nodes that are left in float; as in `select_nodes`.
        rules: Patterns with whether they are left in float; later ones win.
        only: Patterns of nodes that are not; none stands for all.
    """

    patterns: tuple[str, ...] = ()
    rules: tuple[tuple[str, bool], ...] = ()
    only: tuple[str, ...] = ()

    def on(self, model: ir.Model) -> Excludes:
        """Select the nodes of a graph that are left in float.

        Raises:
            RecipeError: A pattern matches nothing, or is no regular expression.
        """
        always = select_nodes(model, self.patterns)
        skips = [(pattern, skip, names_matching(model, pattern, "layers")) for pattern, skip in self.rules]
        kept = [names_matching(model, pattern, "only") for pattern in self.only]

        def excluded(node: ir.Node) -> str | None:
            name, reason = name_of(node), always(node)
            last = next(((pattern, skip) for pattern, skip, names in reversed(skips) if name in names), None)
            if reason is None and last is not None and last[1]:
                reason = f"excluded by {last[0]!r}"
            if reason is None and kept and not any(name in names for names in kept):
                reason = f"not among {', '.join(map(repr, self.only))}"
            return reason

        return excluded


def select_nodes(model: ir.Model, patterns: Sequence[str]) -> Excludes:
    """Compile exclusion patterns.

    Args:
        model: Prepared model.
        patterns: Each names an output value, a node, a module with all that is in it, an operator type, or a glob over
            them; after `re:` comes a regular expression that has to match a whole name.

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
    if not set(pattern) & GLOB:  # a node's own name comes before a module of that name
        exact = frozenset(name_of(node) for node in model.graph if any(test(word) for word in _words(node)))
        if exact:
            return exact
    every = frozenset(
        name_of(node) for node in model.graph if any(test(word) for word in (*_words(node), *_modules(node)))
    )
    if not every:
        raise RecipeError(f"{where}: {pattern!r} matches no node; {_nearest(model, pattern)}")
    return every


def _nearest(model: ir.Model, pattern: str) -> str:
    """Name what the user may have meant: the nearest names, else some operator types."""
    known = dict.fromkeys(word for node in model.graph for word in (*_modules(node), *_words(node)))
    near = difflib.get_close_matches(pattern.removeprefix(REGEX), list(known), n=NEAREST, cutoff=0.5)
    if near:
        return f"the nearest names are {', '.join(near)}"
    kinds = ", ".join(sorted({node.op_type for node in model.graph})[:8])
    return f"expected a module, a node name or one of the types {kinds}"


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


def _modules(node: ir.Node) -> list[str]:
    """List the module that a node is in, and all around it."""
    parts = module_of(node).split(".") if module_of(node) else []
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _compile(pattern: str, where: str) -> Callable[[str], bool]:
    if not pattern.startswith(REGEX):
        return lambda word: fnmatch.fnmatchcase(word, pattern)
    try:
        compiled = re.compile(pattern.removeprefix(REGEX))
    except re.error as error:
        raise RecipeError(f"{where}: {pattern!r} is no regular expression: {error}") from error
    return lambda word: compiled.fullmatch(word) is not None
