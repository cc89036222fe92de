"""Repair of a model that came out below the default floor: the search of goals, with few tries."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ptq.analysis.floor import worst_standing
from ptq.analysis.verdict import Finding
from ptq.core.progress import Progress, silent
from ptq.job import Job, Result
from ptq.passes.modules import shown_name
from ptq.recipe import LayerRule, Recipe
from ptq.tuning.goals import Search

MOST_REPAIRS = 6
"""Runs for a model below the default floor, the first one included."""

MARGIN_DB = 2.0
"""How far above the floor a repair aims: it was chosen on the samples that it is judged on."""

NAMED = 5
"""Layers that a repair is told by."""


def repair(job: Job, poor: Result, progress: Progress = silent) -> Result:
    """Bring a model that came out below the default floor up to it, at the least cost, within few tries.

    Args:
        job: What was run.
        poor: What came of it.
        progress: Called with the name of each step.

    Returns:
        The first model that clears the floor, with a finding that tells what was done and the recipe that makes it.
        If none is, the best one.
    """
    search = Search(job, progress, _clears_the_floor, MOST_REPAIRS, refined=0, margin_db=MARGIN_DB)
    search.note("as asked", job.recipe, poor)
    result = search.finished()
    if result.report.verdict.word == "poor":
        return result
    changed = changes(job.recipe, search.recipe_of(search.best), poor.report.modules)
    text = f"as asked, {poor.report.verdict.floor}; so {changed}"
    verdict = result.report.verdict.with_finding(Finding("repaired", text))
    return replace(result, report=replace(result.report, verdict=verdict))


def _clears_the_floor(result: Result) -> bool:
    """Whether a model would also be at the floor on data that is a little less kind."""
    comparison = result.report.proof.comparison
    rows = [replace(row, sqnr_db=row.sqnr_db - MARGIN_DB) for row in comparison.outputs]
    return worst_standing(replace(comparison, outputs=tuple(rows))).holds


def changes(asked: Recipe, made: Recipe, modules: Mapping[str, str]) -> str:
    """Tell in words what a search has changed about a recipe.

    Args:
        asked: As it was given.
        made: As it is now.
        modules: Name of a node -> the module that it was exported from.
    """
    rules, escaped = made.layers[len(asked.layers) :], {glob.escape(name): name for name in modules}

    def named(chosen: Iterable[LayerRule]) -> list[str]:
        return [shown_name(escaped.get(rule.match, rule.match), modules) for rule in chosen]

    groups = {"in float": named(rule for rule in rules if rule.skip or rule.float_kernel)}
    for bits in sorted({rule.bits for rule in rules if rule.bits is not None and not rule.float_kernel}):
        groups[f"with {bits} bits"] = named(
            rule for rule in rules if rule.bits == bits and not (rule.skip or rule.float_kernel)
        )
    parts = [f"{_listed(names)} {how}" for how, names in groups.items() if names]
    if made.weights != asked.weights:
        parts.append(f"weights by {type(made.weights.chosen).__name__.lower()} with {made.weights.bits} bits")
    if made.activations != asked.activations:
        parts.append(f"ranges by {type(made.activations).__name__.lower()}")
    if made.weight_only and not asked.weight_only:
        parts.append("all activations in float")
    return "; ".join(parts) or "nothing"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
