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

from ptq.analysis.verify import Verification, verify, with_operators
from ptq.balancing import Balanced, Balancing, Outliers, balance, products_by_input
from ptq.calibration.collect import Wanted, collect
from ptq.calibration.other_words import vocabularies, with_other_words
from ptq.calibration.reader import DataReader, Sample
from ptq.calibration.record import CalibrationRecord, CalibrationStatistics
from ptq.calibration.sample import repeated
from ptq.calibration.sequential import Feed, Samples
from ptq.calibration.split import SampleSplit, split_samples
from ptq.calibration.store import ArrayStore
from ptq.core.errors import UnsupportedModelError
from ptq.core.plan import QuantPlan
from ptq.core.progress import Progress, counted, silent
from ptq.delivery import Delivery, pack
from ptq.equalising import LOOKED_AT, Integers, equalise
from ptq.huge import COMPARED, check_huge, is_huge, prepare_huge, require_streamable, stream
from ptq.job import Job, Result
from ptq.layerwise import (
    Settings,
    channel_axes,
    fragile_layers,
    grid_spreads,
    settings_of,
    split_branches,
    spread,
    uneven_concats,
)
from ptq.modelfile import load_model, runnable_source, source_fingerprint
from ptq.outcome import (
    Outcome,
    data_facts,
    native_note,
    overflow_note,
    report_of,
    skipped_note,
    stored_note,
    table_note,
)
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
from ptq.passes.placement import Selector
from ptq.passes.selection import select_nodes
from ptq.recipe import Recipe, recipe_to
from ptq.runtime.native import native_path
from ptq.salient import free_inputs, lift_salient, rounded_alone
from ptq.solve import Problem, make_plan
from ptq.target import Target, target_named
from ptq.trial import require_survivable
from ptq.workspace import Notes, Workspace

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
    if is_huge(model):
        return run_huge(job, model, progress)
    with ArrayStore(MEMORY) as store:
        ready = make_ready(job, model, store, progress)
        with job.engine.open():
            placement, statistics = calibrate(ready, job)
            prepared, split = ready.balanced.model, ready.split
            uses_words = ready.settings.walks and job.recipe.other_words
            words = other_words(prepared, ready.samples, job.recipe.seed) if uses_words else ()
            progress("solve")
            notes, first = notes_of(job, split), split.first.feed
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
    data, spreads = data_facts(job, split, proof), grid_spreads(placement, statistics.histograms, plan)
    outcome = Outcome(model, delivery, placement, rows, told, proof, data, ready.equalized, spreads)
    workspace = None if job.workspace is None else Workspace(job.workspace)
    return Result(delivery, report_of(job, outcome, start), job.custom_ops, workspace)


@dataclass(frozen=True)
class Ready:
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

    balanced: Balanced
    settings: Settings
    split: SampleSplit
    samples: Samples
    feeds: Iterable[Feed]
    notes: tuple[str, ...]
    equalized: bool


def make_ready(job: Job, model: ir.Model, store: ArrayStore, progress: Progress) -> Ready:
    """All that is done to the float model before its activations are looked at."""
    target = target_named(job.recipe.target)
    split = split_samples(job.data, hold_out=job.evaluation is None)
    require_survivable(runnable_source(job.source, model), split.first.feed, job.custom_ops)
    steps = PREPARE_BLOCKS if job.recipe.has_blocks else PREPARE_SMALL if job.recipe.has_small_weights else PREPARE
    prepared, notes = prepare(model, split.first.feed, custom_ops=job.custom_ops, steps=steps)
    settings, evened = settings_of(job.recipe, target, prepared), tuple[str, ...]()
    if job.recipe.equalize and job.recipe.has_grids:
        progress("equalize")
        left_out = left_out_by(prepared, job)
        integers = Integers(settings.choice, settings.observer, settings.activation, left_out, target.native)
        prepared, evened = equalise(prepared, split.ahead(LOOKED_AT), integers, job.custom_ops, progress)
    prepared, settings, divided = split_branches(prepared, settings)
    samples = Samples(store, job.custom_ops, job.engine)
    progress("calibrate")
    feeds = counted(split.calibration_feeds(), split.expected, progress)
    rewrite = rewriting(prepared, job, settings)
    feeds = samples.keep(feeds) if settings.walks or rewrite is not None else feeds
    balanced = Balanced(prepared)
    if rewrite is not None:
        balanced = rewrite(feeds, split.first.feed)
        feeds = counted(samples.take(keep=settings.walks), split.num_calibration, progress)
    notes += (*evened, *divided, *balanced.notes)
    return Ready(balanced, settings, split, samples, feeds, notes, bool(evened) or balanced.evened_out)


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
    if is_huge(model):
        raise UnsupportedModelError("a model too large for memory is not calibrated: its weights alone are quantized")
    with ArrayStore(MEMORY) as store:
        ready = make_ready(job, model, store, progress)
        return observe(ready, job, place_first(ready, job))


def run_huge(job: Job, model: ir.Model, progress: Progress = silent) -> Result:
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
    prepared = prepare_huge(model)
    settings = settings_of(job.recipe, target, prepared)
    workspace = Workspace.at(job.workspace)
    with workspace.released_on_failure():
        streamed = stream(prepared, settings, left_out_by(prepared, job), workspace, progress)
    progress("lower")
    delivery = pack(streamed.model, {"ptq.float_sha256": source_fingerprint(job.source, model)})
    give_up = workspace.remove if workspace.private else workspace.lock.release
    weakref.finalize(delivery, give_up)  # its tensors lie there
    progress("verify")
    with delivery.as_file() as path:
        proof, rows = check_huge(prepared, streamed, path, samples)
    notes = (f"too large for memory: weights solved layer by layer, compared on {len(samples)} samples",)
    outcome = Outcome(model, delivery, streamed.placement, rows, notes, proof, data_facts(job, split, proof))
    return Result(delivery, report_of(job, outcome, start), job.custom_ops, workspace)


def notes_of(job: Job, split: SampleSplit) -> Notes:
    """Where solved layers are noted, known by everything that decides what they become."""
    if job.workspace is None:
        return Notes()
    parts = (job.ledger.origin, split.fingerprint, recipe_to(job.recipe), target_named(job.recipe.target).name)
    return Notes(job.workspace, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())


def left_out_by(model: ir.Model, job: Job) -> Selector:
    """What the recipe leaves in float."""
    return select_nodes(model, job.recipe.exclude + tuple(rule.match for rule in job.recipe.layers if rule.skip))


def rewriting(model: ir.Model, job: Job, settings: Settings) -> Callable[[Iterable[Feed], Feed], Balanced] | None:
    """What makes products easier for integers, given the samples and one of them; None where nothing could."""
    left_out = left_out_by(model, job)
    if not job.recipe.equalize or not products_by_input(model, left_out):
        return None
    if not job.recipe.weight_only:
        terms = Balancing(outliers_of(job.recipe, target_named(job.recipe.target)), settings.weights.spec.num_bits)
        return lambda feeds, first: balance(model, feeds, first, left_out, custom_ops=job.custom_ops, terms=terms)
    rounded = rounded_alone({layer.name: settings.choice(layer) for layer in place_weights(model, left_out).layers})
    if job.data.is_random or not free_inputs(model, rounded):
        return None
    return lambda feeds, first: lift_salient(model, feeds, first, rounded, custom_ops=job.custom_ops)


def other_words(model: ir.Model, samples: Samples, seed: int) -> tuple[str, ...]:
    """Add texts with other words to what weights are fitted to."""
    vocabulary = vocabularies(model)
    if not vocabulary:
        return ()
    count = samples.add(with_other_words(lambda: samples.take(keep=True), vocabulary, seed))
    return (f"weights also fitted to {count} samples with other words in them",) if count else ()


def outliers_of(recipe: Recipe, target: Target) -> Outliers:
    """Where outlier channels are computed; our own dynamic products have a range for every row."""
    return "beside" if not recipe.is_dynamic else "inside" if target.native else "clipped"


def place_first(ready: Ready, job: Job) -> Placement:
    """What may become integers before the data was looked at."""
    model = ready.balanced.model
    left_out = ready.balanced.leaves_out(left_out_by(model, job))
    if job.recipe.has_grids:
        return place(model, left_out, native=target_named(job.recipe.target).native)
    return place_weights(model, left_out, only_products=job.recipe.is_dynamic)


def observe(ready: Ready, job: Job, placement: Placement) -> CalibrationRecord:
    """Look at the data once."""
    wanted = Wanted(tuple(placement.sources), channel_axes(placement), ready.balanced.aside)
    return collect(
        ready.balanced.model, ready.feeds, wanted, custom_ops=job.custom_ops, engine=job.engine, ledger=job.ledger
    )


def calibrate(ready: Ready, job: Job) -> tuple[Placement, CalibrationStatistics]:
    """Look at the data once, then leave out the layers that it shows to be fragile."""
    placement, model = place_first(ready, job), ready.balanced.model
    seen = observe(ready, job, placement).statistics
    statistics = replace(seen, histograms=spread(placement, seen.histograms))
    fragile = {}
    if job.recipe.has_grids:
        fragile = fragile_layers(placement, statistics, ready.settings, job.recipe.min_input_sqnr_db)
    if fragile and len(fragile) < len(placement.layers):  # leaving out everything helps nobody: the verdict will tell
        left_out = ready.balanced.leaves_out(left_out_by(model, job))
        placement = place(
            model,
            lambda node: left_out(node) or fragile.get(str(node.outputs[0].name)),
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
