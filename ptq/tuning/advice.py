"""Advice for a model that is not good enough, or not faster: what was measured to help, never a guess."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace

from ptq.analysis.diff.causes import exclusion
from ptq.analysis.verdict import Finding, Verdict
from ptq.core.errors import PtqError
from ptq.core.progress import Progress, within
from ptq.job import Job, Result
from ptq.passes.modules import Handles, shown_name
from ptq.tuning.blame import blame
from ptq.tuning.latency import fastest

SAMPLES = 4
"""Samples on which layers are switched to float one at a time."""

NAMED = 3
"""Layers that are named."""

MOST_LAYERS = 128
"""Layers of a model whose divisions are timed without being asked for: of more it takes longer than quantizing."""

LEAST_MS = 0.05
"""Time of the float model below which calling it is most of the time, and dividing it no use."""

WORTH = 0.1
"""Share of the error from which on a layer is worth a word."""


def advised(job: Job, result: Result, progress: Progress) -> Result:
    """Add to a verdict what was measured to help: layers whose error counts, and the time of a mixed model.

    Args:
        job: What was asked for.
        result: What came of it.
        progress: Called with the name of each step.

    Returns:
        The result; as it was where nothing is wrong, or nothing was found to help.
    """
    verdict = result.report.verdict
    slow = [finding for finding in verdict.findings if finding.measured]
    if job.flows_by or not (slow or not verdict.passed):
        return result
    pruned = job.recipe.max_macs is not None  # what that cost goes away with no layer in float
    if not pruned and any(each.level in ("missed", "poor") and not each.measured for each in verdict.findings):
        verdict = _on_accuracy(job, result, verdict, within(progress, "advice"))
    telling = len(result.report.layers) <= MOST_LAYERS and result.report.proof.latency.reference_ms >= LEAST_MS
    if slow and telling and job.recipe.has_grids and job.recipe.optimize != "latency":
        verdict = _on_time(job, verdict, within(progress, "advice"))
    return replace(result, report=replace(result.report, verdict=verdict))


def _on_accuracy(job: Job, result: Result, verdict: Verdict, progress: Progress) -> Verdict:
    """Name the layers that take away most of the error when they are in float."""
    data = job.data if job.evaluation is None else job.evaluation
    layers = blame(job, result, itertools.islice(data, SAMPLES), progress).layers
    costly = [
        layer for layer in layers if layer.op_type != "input" and not layer.is_new and (layer.restored or 0.0) >= WORTH
    ][:NAMED]
    if not costly:
        return verdict
    handles, names = Handles(result.report.modules), {layer.name: layer.module for layer in costly}
    parts = ", ".join(f"{shown_name(layer.name, names)} {layer.restored or 0.0:.0%}" for layer in costly)
    text = f"measured on {SAMPLES} samples, error that goes away with a layer in float: {parts}"
    return verdict.with_finding(
        Finding("warning", f"{text}; {exclusion([handles.of(layer.name) for layer in costly])}")
    )


def _on_time(job: Job, verdict: Verdict, progress: Progress) -> Verdict:
    """Measure what leaving layers in float gives, and end the warning about time with it."""
    with suppress(PtqError):  # a model that cannot be profiled is not advised on
        plans = fastest(replace(job, recipe=replace(job.recipe, search=False)), progress, rounds=1).plans
        floats, best = plans[0].milliseconds, min(plans[1:], key=lambda plan: plan.milliseconds)
        ratio = best.milliseconds / max(floats, 1e-9)
        text = f"measured: --optimize latency takes {ratio:.2f} of float's time ({best.name})"
        if ratio >= 1:
            text = "measured: no division between float and integers is faster; --weight-only keeps float's time"
        findings = [replace(f, text=f"{f.text}; {text}") if f.measured else f for f in verdict.findings]
        return replace(verdict, findings=tuple(findings))
    return verdict
