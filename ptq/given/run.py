"""Run of a model that is quantized already: what came on integers is never torn apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from ptq.analysis.kernels import Kernels, count_kernels
from ptq.analysis.outcome import Outcome
from ptq.calibration.split import split_samples
from ptq.core.errors import EquivalenceError, UnsupportedModelError
from ptq.delivery.deliver import Delivery, as_it_came
from ptq.given.find import GivenIntegers, given_integers
from ptq.job import Context, Result
from ptq.models.probe import require_survivable
from ptq.passes.placement import NOWHERE
from ptq.streaming.solve import needs_streaming

CAME = "already quantized: delivered as it came"
COMPLETED = "already quantized in part: its integers are kept as they came, what came in float was completed"
NOTHING = "nothing in it could be completed"


def run_given(context: Context, start: float, complete: Callable[[], Result]) -> Result | None:
    """Deliver a quantized model as it came, or with its float parts on integers if that is sound.

    Args:
        context: Model, data and recipe.
        start: When the run began, seconds of `time.perf_counter`.
        complete: Quantizes what is float, and leaves the rest.

    Returns:
        Model and report, as `ptq.pipeline.run` returns them; None if the model is float.

    Raises:
        UnsupportedModelError: Channels that carry something were to leave it.
    """
    found = given_integers(context.model)
    if found is None:
        return None
    if context.job.recipe.max_macs is not None:
        raise UnsupportedModelError(
            "the model is quantized already, and integers are not refitted: leave out --max-macs"
        )
    came, reason = as_it_came(context.job.source, context.model), ""
    if found.open and not found.is_own and not needs_streaming(context.model):
        reason = NOTHING
        with contextlib.suppress(EquivalenceError, UnsupportedModelError):
            result = complete()
            with came.as_file() as path:
                reason = _objection(result, came, count_kernels(path, context.job.custom_ops))
            if not reason:
                return replace(result, report=replace(result.report, notes=(COMPLETED, *result.report.notes)))
    return _unchanged(context, found, came, (CAME, reason) if reason else (CAME,), start)


def _objection(result: Result, came: Delivery, before: Kernels) -> str:
    """Return what speaks against a completed model; empty if nothing does. No clock is asked."""
    if not result.report.verdict.passed:
        return "completed, it would miss a goal"
    after, smaller = result.report.proof.kernels, result.delivery.num_bytes < came.num_bytes
    if sum(after.fallbacks.values()) > sum(before.fallbacks.values()) or after.num_linear < before.num_linear:
        return "completed, it would run fewer layers on integers"
    if result.delivery.num_bytes > came.num_bytes and after.num_linear == before.num_linear:
        return "completed, it would only be larger"
    return "" if smaller or after.num_linear > before.num_linear else NOTHING


def _unchanged(context: Context, found: GivenIntegers, came: Delivery, notes: tuple[str, ...], start: float) -> Result:
    """Check a model that goes as it came, and report on it."""
    job = context.job
    split = split_samples(job.data, hold_out=job.evaluation is None)
    require_survivable(context.form, split.first.feed, job.custom_ops)
    for _ in split.calibration_feeds():  # those held out, and the hash of all, are known at the end
        pass
    context.progress("verify")
    proof = context.check(came, split)
    placement = replace(NOWHERE, left_float=found.open)
    data = context.facts(split, proof)
    return context.result(Outcome(context.model, came, placement, (), notes, proof, data, unchanged=True), start)
