"""Pipeline of a run, top to bottom: model -> prepare -> calibrate -> solve -> plan -> lower -> verify -> deliver.

Every step is a function of the steps before it. The graph stays float until `Mode.lower`; decisions live in values
(`Placement`, `QuantPlan`) outside it. Nothing reaches an output path before the very bytes were loaded and run.
"""

from __future__ import annotations

import time

from ptq.analysis.outcome import Outcome
from ptq.calibration.calibration_set import CalibrationSet, RoundEnds
from ptq.calibration.record import RANGES, CalibrationRecord, CalibrationStatistics
from ptq.calibration.token_augmentation import augment
from ptq.core.errors import UnsupportedModelError
from ptq.core.progress import Progress, silent
from ptq.delivery.deliver import pack
from ptq.given.run import run_given
from ptq.job import Context, Job, Result
from ptq.models.probe import require_survivable
from ptq.passes import prepare
from ptq.passes.modules import modules_of
from ptq.passes.placement import Placement
from ptq.solving.choices import choices_of
from ptq.solving.grids import grid_distributions, per_value
from ptq.solving.plan import Problem, make_plan
from ptq.streaming.run import run_streamed
from ptq.streaming.solve import needs_streaming
from ptq.transforms import Rewritten


def run(job: Job, progress: Progress = silent) -> Result:
    """Quantize a float model.

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step as it starts; see `ptq.core.progress`.

    Returns:
        The quantized model and the report. A missed goal is no error: see `report.verdict`.

    Raises:
        PtqError: Model, data or recipe cannot be used.
    """
    start = time.perf_counter()
    context = Context.of(job, progress)
    given = run_given(context, start, lambda: run_float(context, start))
    if given is not None:
        return given
    return run_streamed(context, start) if needs_streaming(context.model) else run_float(context, start)


def run_float(context: Context, start: float) -> Result:
    """Quantize what of a model is float, all of it in memory."""
    job, progress = context.job, context.progress
    with context.calibration() as calibration:
        state = rewrite(context, calibration)
        problem = calibrate(context, state, calibration)
        words = augment(state.model, calibration.samples, job.recipe.seed) if context.augments(state.choices) else ()
        progress("solve")
        plan, rows = make_plan(problem)
    progress("lower")
    delivery = pack(context.mode.lower(state.model, problem.placement, plan), context.metadata)
    progress("verify")
    proof = context.check(delivery, calibration.split)
    notes = (*state.notes, *words, *context.notes_on(problem, plan, delivery.model), *proof.comparison.notes)
    grids = grid_distributions(problem.placement, problem.histograms, plan)
    data = context.facts(calibration.split, proof)
    outcome = Outcome(
        context.model, delivery, problem.placement, rows, notes, proof, data, state.evened_out, grids,
        modules_of(state.model),
    )  # fmt: skip
    return context.result(outcome, start)


def run_calibration(job: Job, progress: Progress = silent) -> CalibrationRecord:
    """Run the model over the calibration set, or a shard of it, and do nothing else.

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step as it starts.

    Returns:
        What `run` takes instead of looking itself, in its shards; nothing else about the result differs. Of a shard
        whose second pass needs what others see in the first one: the first.

    Raises:
        PtqError: Model, data or recipe cannot be used.
    """
    context = Context.of(job, progress)
    if needs_streaming(context.model):
        raise UnsupportedModelError("a model too large for memory is not calibrated: its weights alone are quantized")
    with context.calibration() as calibration:
        try:
            state = rewrite(context, calibration)
            observe(context, state, context.mode.place(state), calibration)
        except RoundEnds as end:
            return end.record
        return calibration.record


def rewrite(context: Context, calibration: CalibrationSet) -> Rewritten:
    """Bring the float model into normal form, then make it easier to quantize."""
    require_survivable(context.form, calibration.first, context.job.custom_ops)
    mode, custom_ops = context.mode, context.job.custom_ops
    prepared, notes = prepare(context.model, calibration.first, custom_ops=custom_ops, steps=mode.steps)
    state = Rewritten(prepared, choices_of(context.job.recipe, context.target, prepared), notes=notes)
    for transform in mode.transforms:
        state = transform.rewrite(state, calibration)
    return state


def observe(
    context: Context, state: Rewritten, placement: Placement, calibration: CalibrationSet
) -> CalibrationStatistics:
    """Run the model over the data once, and take whatever statistics the plan will ask for."""
    wanted = context.mode.wanted(state, placement)
    return calibration.observe(state.model, wanted, RANGES, again=state.choices.walks)


def calibrate(context: Context, state: Rewritten, calibration: CalibrationSet) -> Problem:
    """Place integers, observe the data, and leave out the layers that it shows to be ruined by them."""
    placement = context.mode.place(state)
    statistics = observe(context, state, placement, calibration)
    histograms = per_value(placement, statistics.histograms)
    floats = context.mode.too_coarse(state, placement, histograms, statistics.halves)
    if floats and len(floats) < len(placement.layers):  # leaving out everything helps nobody: the verdict will tell
        placement = context.mode.place(state, floats)
    return Problem(
        state.model, placement, histograms, statistics.means, state.choices, calibration.samples, calibration.first,
        context.checkpoints(calibration), context.progress,
    )  # fmt: skip
