"""Run that takes channels out of a float model, and leaves it in float."""

from __future__ import annotations

import time
from dataclasses import replace

from ptq.analysis.outcome import Outcome
from ptq.calibration.calibration_set import CalibrationSet
from ptq.core.errors import UnsupportedModelError
from ptq.core.progress import Progress, silent
from ptq.delivery.deliver import as_it_came, pack
from ptq.job import Context, Job, Result
from ptq.models.probe import require_survivable
from ptq.passes import PREPARE, prepare
from ptq.passes.channels.removed import REFITTED, REMOVED, count_removed
from ptq.passes.placement import NOWHERE
from ptq.solving.choices import choices_of
from ptq.streaming.solve import needs_streaming
from ptq.transforms import Rewritten

NOTHING_LEAVES = "no channel carries nothing: the model is as it came"


def run_squeezed(job: Job, progress: Progress = silent) -> Result:
    """Take channels that carry nothing out of a float model, and do nothing else.

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step.

    Returns:
        The smaller float model and the report; the model as it came if all of its channels carry something.

    Raises:
        PtqError: Model, data or recipe cannot be used.
    """
    start = time.perf_counter()
    context = Context.of(job, progress)
    if needs_streaming(context.model):
        raise UnsupportedModelError("a model too large for memory is not squeezed")
    with context.calibration() as calibration:
        state = _rewrite(context, calibration)
        calibration.read()
    squeezed = count_removed(state.model) > 0
    for key in (REMOVED, REFITTED):
        state.model.metadata_props.pop(key, None)  # of what is quantized later, this is the float model
    delivery = pack(state.model, context.metadata) if squeezed else as_it_came(job.source, context.model)
    progress("verify")
    proof = context.check(delivery, calibration.split)
    notes = state.notes if squeezed else (NOTHING_LEAVES,)
    data = context.facts(calibration.split, proof)
    outcome = Outcome(context.model, delivery, NOWHERE, (), notes, proof, data, stays_float=True)
    return context.result(replace(outcome, unchanged=not squeezed), start)


def _rewrite(context: Context, calibration: CalibrationSet) -> Rewritten:
    """Bring the model into normal form, and take out what carries nothing."""
    job = context.job
    require_survivable(context.form, calibration.first, job.custom_ops)
    prepared, notes = prepare(context.model, calibration.first, custom_ops=job.custom_ops, steps=PREPARE)
    state = Rewritten(prepared, choices_of(job.recipe, context.target, prepared), notes=notes)
    for transform in context.mode.squeezes:
        state = transform.rewrite(state, calibration)
    return state
