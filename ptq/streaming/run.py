"""Run of a streamed model, in which neither model is ever whole in memory."""

from __future__ import annotations

import itertools
import weakref

from ptq.analysis.outcome import Outcome
from ptq.calibration.reader import Sample
from ptq.calibration.split import split_samples
from ptq.delivery.deliver import pack
from ptq.delivery.workspace import Workspace
from ptq.job import Context, Result
from ptq.passes.modules import modules_of
from ptq.solving.choices import choices_of
from ptq.streaming.solve import COMPARED, prepare_streaming, require_streamable, stream
from ptq.streaming.verify import verify_streamed


def run_streamed(context: Context, start: float) -> Result:
    """Quantize the weights of a model, layer by layer.

    Args:
        context: Model, data and recipe; weights alone.
        start: When the run began, seconds of `time.perf_counter`.

    Returns:
        Model and report, as `ptq.pipeline.run` returns them.

    Raises:
        UnsupportedModelError: The recipe asks for more than weights.
    """
    job = context.job
    others = {"--eval-data": job.evaluation, "--custom-ops": job.custom_ops, "--metric": job.metric}
    require_streamable(job.recipe, [option for option, given in others.items() if given])
    split = split_samples(job.data, hold_out=False)
    samples = [Sample(feed) for feed in itertools.islice(split.calibration_feeds(), COMPARED)]
    prepared = prepare_streaming(context.model)
    choices = choices_of(job.recipe, context.target, prepared)
    workspace = Workspace.at(job.workspace)
    with workspace.released_on_failure():
        excluded = context.mode.exclusions.on(prepared)
        streamed = stream(prepared, choices, excluded, workspace, context.progress)
    context.progress("lower")
    delivery = pack(streamed.model, context.metadata)
    give_up = workspace.remove if workspace.private else workspace.lock.release
    weakref.finalize(delivery, give_up)  # its tensors lie there
    context.progress("verify")
    with delivery.as_file() as path:
        proof, rows = verify_streamed(prepared, streamed, path, samples)
    notes = (f"too large for memory: weights solved layer by layer, compared on {len(samples)} samples",)
    data = context.facts(split, proof)
    return context.result(
        Outcome(context.model, delivery, streamed.placement, rows, notes, proof, data, modules=modules_of(prepared)),
        start,
        workspace,
    )
