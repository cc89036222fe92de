"""The data flow, top to bottom: model -> prepare -> calibrate -> solve -> plan -> lower -> verify -> deliver.

Every step is a function of the steps before it. The graph stays float until `InsertQdq`; decisions live in values
(`Placement`, `QuantPlan`) outside it. Nothing reaches an output path before the very bytes were loaded and run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ptq.analysis.outcome import (
    Outcome,
    data_facts,
    native_note,
    overflow_note,
    report_of,
    skipped_note,
    stored_note,
    table_note,
)
from ptq.analysis.verify import Verification, verify, with_operators
from ptq.analysis.verify_streamed import verify_streamed
from ptq.calibration.collect import Wanted, collect
from ptq.calibration.reader import DataReader, Sample
from ptq.calibration.record import CalibrationRecord, CalibrationStatistics
from ptq.calibration.sample import repeated
from ptq.calibration.sequential import Feed, SampleReplay
from ptq.calibration.split import SampleSplit, split_samples
from ptq.calibration.store import ArrayStore
from ptq.calibration.token_augmentation import vocabularies, with_other_tokens
from ptq.core.errors import UnsupportedModelError
from ptq.core.plan import QuantPlan
from ptq.core.progress import Progress, counted, silent
from ptq.delivery.checkpoints import Checkpoints, Workspace
from ptq.delivery.deliver import Delivery, pack
from ptq.job import Job, Result
from ptq.models.load import load_model
from ptq.models.probe import require_survivable
from ptq.models.source import runnable_source, source_fingerprint
from ptq.passes import (
    PREPARE,
    PREPARE_BLOCKS,
    PREPARE_SMALL,
    InsertDynamic,
    InsertQdq,
    Placement,
    UseNative,
    place,
    place_weights,
    prepare,
)
from ptq.passes.placement import Excludes
from ptq.passes.selection import select_nodes
from ptq.recipe import Recipe
from ptq.recipe.toml import recipe_to
from ptq.runtime.native import native_path
from ptq.solving.choices import Choices, choices_of
from ptq.solving.grids import channel_axes, grid_distributions, low_sqnr_inputs, per_value, uneven_concats
from ptq.solving.plan import Problem, make_plan
from ptq.solving.streaming import COMPARED, needs_streaming, prepare_streaming, require_streamable, stream
from ptq.target import Target, target_named
from ptq.transforms.equalize_convs import PROPOSED_ON, Integers, equalize
from ptq.transforms.scale_salient import free_inputs, lift_salient, rounded_alone
from ptq.transforms.smooth_products import Balancing, Outliers, Rewritten, balance, products_by_input
from ptq.transforms.split_centers import split_branches

MEMORY = 256 * 2**20
"""Bytes of values that wait in memory between two layers; more go to temporary files."""


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
    target = target_named(job.recipe.target)
    progress("prepare")
    model = load_model(job.source)
    if needs_streaming(model):
        return run_streaming(job, model, progress)
    with ArrayStore(MEMORY) as store:
        ready = prepare_model(job, model, store, progress)
        with job.engine.open():
            placement, statistics = calibrate(ready, job)
            prepared, split = ready.balanced.model, ready.split
            uses_words = ready.settings.walks and job.recipe.other_words
            words = other_words(prepared, ready.samples, job.recipe.seed) if uses_words else ()
            progress("solve")
            notes, first = checkpoints_of(job, split), split.first.feed
            problem = Problem(prepared, placement, statistics, ready.settings, ready.samples, first, notes, progress)
            plan, rows = make_plan(problem)
    progress("lower")
    delivery = pack(
        lower(prepared, placement, plan, target, dynamic=job.recipe.is_dynamic),
        {"ptq.float_sha256": source_fingerprint(job.source, model)},
    )
    progress("verify")
    proof = check(job, model, delivery, split, progress)
    told = (
        *ready.notes,
        *words,
        *skipped_note(job.data),
        *table_note(plan),
        *stored_note(prepared, placement, plan, delivery.model),
        *native_note(delivery.model),
        *overflow_note(target, weight_only=job.recipe.weight_only),
        *uneven_concats(prepared, placement, statistics.histograms),
    )
    data = data_facts(job.data, split, proof, evaluated=job.evaluation is not None)
    spreads = grid_distributions(placement, statistics.histograms, plan)
    outcome = Outcome(model, delivery, placement, rows, told, proof, data, ready.equalized, spreads)
    workspace = None if job.workspace is None else Workspace(job.workspace)
    return Result(delivery, report_of(job.source, job.recipe, outcome, start), job.custom_ops, workspace)


@dataclass(frozen=True)
class Prepared:
    """A float model that can be calibrated.

    Attributes:
        balanced: The model, its channels evened out.
        settings: How each layer is treated.
        split: The calibration set, a part of it held out.
        samples: The set once more, for methods that walk.
        feeds: The set, to be run.
        notes: What was changed.
        equalized: Whether widths of channels were evened out.
    """

    balanced: Rewritten
    settings: Choices
    split: SampleSplit
    samples: SampleReplay
    feeds: Iterable[Feed]
    notes: tuple[str, ...]
    equalized: bool


def prepare_model(job: Job, model: ir.Model, store: ArrayStore, progress: Progress) -> Prepared:
    """All that is done to the float model before its activations are looked at."""
    target = target_named(job.recipe.target)
    split = split_samples(job.data, hold_out=job.evaluation is None)
    require_survivable(runnable_source(job.source, model), split.first.feed, job.custom_ops)
    steps = PREPARE_BLOCKS if job.recipe.has_blocks else PREPARE_SMALL if job.recipe.has_small_weights else PREPARE
    prepared, notes = prepare(model, split.first.feed, custom_ops=job.custom_ops, steps=steps)
    settings, evened = choices_of(job.recipe, target, prepared), tuple[str, ...]()
    if job.recipe.equalize and job.recipe.has_grids:
        progress("equalize")
        excluded = excluded_by(prepared, job)
        integers = Integers(settings.choice, settings.observer, settings.activation, excluded, target.native)
        prepared, evened = equalize(prepared, split.ahead(PROPOSED_ON), integers, job.custom_ops, progress)
    prepared, settings, divided = split_branches(prepared, settings)
    samples = SampleReplay(store, job.custom_ops, job.engine)
    progress("calibrate")
    feeds = counted(split.calibration_feeds(), split.expected, progress)
    rewrite = rewriting(prepared, job, settings)
    feeds = samples.record(feeds) if settings.walks or rewrite is not None else feeds
    balanced = Rewritten(prepared)
    if rewrite is not None:
        balanced = rewrite(feeds, split.first.feed)
        feeds = counted(samples.replay(keep=settings.walks), split.num_calibration, progress)
    notes += (*evened, *divided, *balanced.notes)
    return Prepared(balanced, settings, split, samples, feeds, notes, bool(evened) or balanced.evened_out)


def run_calibration(job: Job, progress: Progress = silent) -> CalibrationRecord:
    """Only look at the calibration set, or at a shard of it (`job.ledger`).

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step as it starts.

    Returns:
        What `run` takes instead of looking itself, in its ledger; nothing else about the result differs.

    Raises:
        PtqError: Model, data or recipe cannot be used.
    """
    progress("prepare")
    model = load_model(job.source)
    if needs_streaming(model):
        raise UnsupportedModelError("a model too large for memory is not calibrated: its weights alone are quantized")
    with ArrayStore(MEMORY) as store:
        ready = prepare_model(job, model, store, progress)
        return observe(ready, job, place_first(ready, job))


def run_streaming(job: Job, model: ir.Model, progress: Progress = silent) -> Result:
    """Quantize a model whose weights do not fit into memory several times over, layer by layer.

    Args:
        job: Model, data and recipe; weights alone.
        model: The model as it came.
        progress: Called with the name of each step, and of each layer.

    Returns:
        As `run`.
    """
    start, target = time.perf_counter(), target_named(job.recipe.target)
    others = {"--eval-data": job.evaluation, "--custom-ops": job.custom_ops, "--metric": job.metric}
    require_streamable(job.recipe, [option for option, given in others.items() if given])
    split = split_samples(job.data, hold_out=False)
    samples = [Sample(feed) for feed in itertools.islice(split.calibration_feeds(), COMPARED)]
    prepared = prepare_streaming(model)
    settings = choices_of(job.recipe, target, prepared)
    workspace = Workspace.at(job.workspace)
    with workspace.released_on_failure():
        streamed = stream(prepared, settings, excluded_by(prepared, job), workspace, progress)
    progress("lower")
    delivery = pack(streamed.model, {"ptq.float_sha256": source_fingerprint(job.source, model)})
    give_up = workspace.remove if workspace.private else workspace.lock.release
    weakref.finalize(delivery, give_up)  # its tensors lie there
    progress("verify")
    with delivery.as_file() as path:
        proof, rows = verify_streamed(prepared, streamed, path, samples)
    notes = (f"too large for memory: weights solved layer by layer, compared on {len(samples)} samples",)
    outcome = Outcome(model, delivery, streamed.placement, rows, notes, proof, data_facts(job.data, split, proof))
    return Result(delivery, report_of(job.source, job.recipe, outcome, start), job.custom_ops, workspace)


def checkpoints_of(job: Job, split: SampleSplit) -> Checkpoints:
    """Where solved layers are noted, known by everything that decides what they become."""
    if job.workspace is None:
        return Checkpoints()
    parts = (job.ledger.origin, split.fingerprint, recipe_to(job.recipe), target_named(job.recipe.target).name)
    return Checkpoints(job.workspace, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())


def excluded_by(model: ir.Model, job: Job) -> Excludes:
    """What the recipe leaves in float."""
    return select_nodes(model, job.recipe.exclude + tuple(rule.match for rule in job.recipe.layers if rule.skip))


def rewriting(model: ir.Model, job: Job, settings: Choices) -> Callable[[Iterable[Feed], Feed], Rewritten] | None:
    """What makes products easier for integers, given the samples and one of them; None where nothing could."""
    excluded = excluded_by(model, job)
    if not job.recipe.equalize or not products_by_input(model, excluded):
        return None
    if not job.recipe.weight_only:
        terms = Balancing(outliers_of(job.recipe, target_named(job.recipe.target)), settings.weights.spec.num_bits)
        return lambda feeds, first: balance(model, feeds, first, excluded, custom_ops=job.custom_ops, terms=terms)
    rounded = rounded_alone({layer.name: settings.choice(layer) for layer in place_weights(model, excluded).layers})
    if job.data.is_random or not free_inputs(model, rounded):
        return None
    return lambda feeds, first: lift_salient(model, feeds, first, rounded, custom_ops=job.custom_ops)


def other_words(model: ir.Model, samples: SampleReplay, seed: int) -> tuple[str, ...]:
    """Add texts with other words to what weights are fitted to."""
    vocabulary = vocabularies(model)
    if not vocabulary:
        return ()
    count = samples.extend(with_other_tokens(lambda: samples.replay(keep=True), vocabulary, seed))
    return (f"weights also fitted to {count} samples with other words in them",) if count else ()


def outliers_of(recipe: Recipe, target: Target) -> Outliers:
    """Where outlier channels are computed; our own dynamic products have a range for every row."""
    return "beside" if not recipe.is_dynamic else "inside" if target.native else "clipped"


def place_first(ready: Prepared, job: Job) -> Placement:
    """What may become integers before the data was looked at."""
    model = ready.balanced.model
    excluded = ready.balanced.leaves_out(excluded_by(model, job))
    if job.recipe.has_grids:
        return place(model, excluded, native=target_named(job.recipe.target).native)
    return place_weights(model, excluded, only_products=job.recipe.is_dynamic)


def observe(ready: Prepared, job: Job, placement: Placement) -> CalibrationRecord:
    """Look at the data once."""
    wanted = Wanted(tuple(placement.sources), channel_axes(placement), ready.balanced.aside)
    return collect(
        ready.balanced.model, ready.feeds, wanted, custom_ops=job.custom_ops, engine=job.engine, ledger=job.ledger
    )


def calibrate(ready: Prepared, job: Job) -> tuple[Placement, CalibrationStatistics]:
    """Look at the data once, then leave out the layers that it shows to be fragile."""
    placement, model = place_first(ready, job), ready.balanced.model
    seen = observe(ready, job, placement).statistics
    statistics = replace(seen, histograms=per_value(placement, seen.histograms))
    fragile = {}
    if job.recipe.has_grids:
        fragile = low_sqnr_inputs(placement, statistics, ready.settings, job.recipe.min_input_sqnr_db)
    if fragile and len(fragile) < len(placement.layers):  # leaving out everything helps nobody: the verdict will tell
        excluded = ready.balanced.leaves_out(excluded_by(model, job))
        placement = place(
            model,
            lambda node: excluded(node) or fragile.get(str(node.outputs[0].name)),
            native=target_named(job.recipe.target).native,
        )
    return placement, statistics


def lower(model: ir.Model, placement: Placement, plan: QuantPlan, target: Target, *, dynamic: bool = False) -> ir.Model:
    """The one step from float to integers, on a copy."""
    lowered = model.clone()
    InsertQdq(plan, placement)(lowered)
    if dynamic:
        InsertDynamic(plan, placement, target.native_words)(lowered)
    elif target.native:
        UseNative(plan, target.native_words)(lowered)
    return lowered


def check(
    job: Job, model: ir.Model, delivery: Delivery, split: SampleSplit, progress: Progress = silent
) -> Verification:
    """Run the bytes that will be delivered beside the model that came in."""
    samples: Sequence[Sample] | DataReader = split.verification if job.evaluation is None else job.evaluation
    total = len(split.verification) if job.evaluation is None else job.evaluation.num_samples
    library = native_path() if target_named(job.recipe.target).native else None
    libraries = (*job.custom_ops, *(() if library is None else (library,)))
    timed = replace(split.first, feed=repeated(split.first.feed, job.recipe.latency_batch))
    with delivery.as_file() as path:
        source, seen = runnable_source(job.source, model), counted(samples, total, progress)
        proof = verify(source, path, seen, timed, custom_ops=libraries, metric=job.metric)
        return with_operators(proof, source, path, timed, libraries) if job.profiled else proof
