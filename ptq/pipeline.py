"""The data flow, top to bottom: model -> prepare -> calibrate -> solve -> plan -> lower -> verify -> deliver.

Every step is a function of the steps before it. The graph stays float until `InsertQdq`; decisions live in values
(`Placement`, `QuantPlan`) outside it. Nothing reaches an output path before the very bytes were loaded and run.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ptq.analysis.card import card_markdown
from ptq.analysis.compare import Metric
from ptq.analysis.report import DataFacts, FileFacts, QuantReport
from ptq.analysis.storage import bytes_by_kind
from ptq.analysis.verdict import judge
from ptq.analysis.verify import Verification, verify
from ptq.balancing import Balanced, Balancing, Outliers, balance, products_by_input
from ptq.calibration.collect import CalibrationStatistics, Wanted, collect
from ptq.calibration.engine import Engine, Threads
from ptq.calibration.other_words import vocabularies, with_other_words
from ptq.calibration.reader import DataReader, Sample
from ptq.calibration.sequential import Feed, Samples
from ptq.calibration.split import SampleSplit, split_samples
from ptq.calibration.store import ArrayStore
from ptq.core.plan import QuantPlan
from ptq.delivery import Delivery, deliver, pack
from ptq.equalising import LOOKED_AT, Integers, equalise
from ptq.huge import COMPARED, check_huge, is_huge, prepare_huge, require_streamable, stream
from ptq.layerwise import (
    Settings,
    channel_axes,
    fragile_layers,
    settings_of,
    split_branches,
    spread,
    uneven_concats,
)
from ptq.modelfile import ModelSource, load_model, runnable_source, source_bytes, source_fingerprint
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
from ptq.passes.native_bodies import DOMAIN as NATIVE_DOMAIN
from ptq.passes.placement import Selector
from ptq.passes.selection import select_nodes
from ptq.passes.stored import describe
from ptq.recipe import Recipe, recipe_to
from ptq.runtime.native import native_path
from ptq.runtime.opening import open_session
from ptq.solve import LayerRow, Problem, make_plan
from ptq.target import Target, target_named
from ptq.workspace import Workspace

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Progress = Callable[[str], None]

MEMORY = 256 * 2**20
"""Bytes of values that wait in memory between two layers; more go to temporary files."""


@dataclass(frozen=True)
class Result:
    """A finished run; nothing is on disk yet.

    Attributes:
        delivery: The quantized model.
        report: What happened; `report.verdict.passed` says whether every goal was met.
        custom_ops: Libraries the model needs.
        workspace: Where an interrupted run would have gone on from; None if there was none.
    """

    delivery: Delivery
    report: QuantReport
    custom_ops: tuple[str | Path, ...] = ()
    workspace: Workspace | None = None

    def save(self, path: str | Path) -> None:
        """Write the model to `path` and its card beside it (`path` + .card.json, .card.md): all or nothing.

        Raises:
            InputError: A file cannot be written; what was there before is still there.
        """
        deliver(Path(path), self.delivery, cards_of(self.report, Path(path)))

    def session(self) -> InferenceSession:
        """Open the quantized model in onnxruntime."""
        with self.delivery.as_file() as path:
            return open_session(path, custom_ops=self.custom_ops, num_threads=0)


def cards_of(report: QuantReport, output: Path) -> dict[str, bytes]:
    """The card of a model at `output` as JSON and Markdown, and what was measured; by the suffixes of their paths."""
    named = replace(report, quantized_model=replace(report.quantized_model, name=output.name))
    bench = json.dumps(named.bench(), indent=2, sort_keys=True) + "\n"
    texts = {".card.json": named.card_json(), ".card.md": card_markdown(named), ".bench.json": bench}
    return {suffix: text.encode() for suffix, text in texts.items()}


@dataclass(frozen=True)
class Job:
    """What one run works on.

    Attributes:
        source: The float model as it came.
        data: The calibration set.
        recipe: Decisions.
        evaluation: Data to verify on. Default: every eighth calibration sample is held out for it.
        custom_ops: Libraries with operators that the model needs.
        metric: Name and function of a user metric.
        workspace: Folder in which a model too large for memory is built, and from which an interrupted run goes on;
            None for a temporary one.
        engine: Where the calibration set is run.
    """

    source: ModelSource
    data: DataReader
    recipe: Recipe = field(default_factory=Recipe)
    evaluation: DataReader | None = None
    custom_ops: tuple[str | Path, ...] = ()
    metric: tuple[str, Metric] | None = None
    workspace: Path | None = None
    engine: Engine = field(default_factory=Threads)


def run(job: Job, progress: Progress = lambda _step: None) -> Result:
    """Quantize a float model.

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step as it starts.

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
    split = split_samples(job.data, hold_out=job.evaluation is None)
    steps = PREPARE_BLOCKS if job.recipe.has_blocks else PREPARE_SMALL if job.recipe.has_small_weights else PREPARE
    prepared, notes = prepare(model, split.first.feed, custom_ops=job.custom_ops, steps=steps)
    settings, evened = settings_of(job.recipe, target, prepared), tuple[str, ...]()
    if job.recipe.equalize and job.recipe.has_grids:
        progress("equalize")
        left_out = left_out_by(prepared, job)
        integers = Integers(settings.choice, settings.observer, settings.activation, left_out, target.native)
        prepared, evened = equalise(prepared, split.ahead(LOOKED_AT), integers, job.custom_ops)
    prepared, settings, divided = split_branches(prepared, settings)
    with ArrayStore(MEMORY) as store:
        samples = Samples(store, job.custom_ops)
        progress("calibrate")
        feeds = split.calibration_feeds()
        feeds = samples.keep(feeds) if settings.walks or balances(prepared, job) else feeds
        balanced = Balanced(prepared)
        if balances(prepared, job):
            balanced = balance(
                prepared,
                feeds,
                split.first.feed,
                left_out_by(prepared, job),
                custom_ops=job.custom_ops,
                terms=Balancing(outliers_of(job.recipe, target), settings.weights.spec.num_bits),
            )
            feeds, prepared = samples.take(keep=settings.walks), balanced.model
        placement, statistics = calibrate(balanced, feeds, job, settings)
        words: tuple[str, ...] = ()
        if settings.walks and job.recipe.other_words:
            words = other_words(prepared, samples, job.recipe.seed)
        progress("solve")
        plan, rows = make_plan(Problem(prepared, placement, statistics, settings, samples, split.first.feed))
    progress("lower")
    delivery = pack(
        lower(prepared, placement, plan, target, dynamic=job.recipe.is_dynamic),
        {"ptq.float_sha256": source_fingerprint(job.source, model)},
    )
    progress("verify")
    proof = check(job, model, delivery, split)
    notes += (
        *evened,
        *divided,
        *balanced.notes,
        *words,
        *_skipped_note(job.data),
        *_table_note(plan),
        *_stored_note(prepared, placement, plan),
        *_native_note(delivery.model),
        *uneven_concats(prepared, placement, statistics.histograms),
    )
    equalized = bool(evened) or balanced.evened_out
    outcome = Outcome(model, delivery, placement, rows, notes, proof, _data_facts(job, split, proof), equalized)
    return Result(delivery, report_of(job, outcome, start), job.custom_ops)


@dataclass(frozen=True)
class Outcome:
    """What a run ends with, before it is judged.

    Attributes:
        model: As it came.
        delivery: As it goes.
        placement: What became integers.
        rows: What became of each layer.
        notes: What else a user should know.
        proof: What was measured.
        data: On which data.
        equalized: Whether widths of channels were evened out.
    """

    model: ir.Model
    delivery: Delivery
    placement: Placement
    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...]
    proof: Verification
    data: DataFacts
    equalized: bool = False


def report_of(job: Job, outcome: Outcome, start: float) -> QuantReport:
    """Judge a run that began at `start`, and put everything into one value."""
    source, delivery = job.source, outcome.delivery
    hashed = source_fingerprint(source, outcome.model)
    facts = FileFacts(_name(source), hashed, source_bytes(source, outcome.model), _opset(outcome.model))
    sizes = (facts.num_bytes, delivery.num_bytes)
    return QuantReport(
        float_model=facts,
        quantized_model=FileFacts("", delivery.fingerprint, delivery.num_bytes, _opset(delivery.model)),
        data=outcome.data,
        recipe=recipe_to(job.recipe),
        target=target_named(job.recipe.target),
        layers=outcome.rows,
        left_float=outcome.placement.left_float,
        num_grids=len(outcome.placement.groups),
        equalized=outcome.equalized,
        storage=bytes_by_kind(delivery.model, delivery.num_bytes),
        notes=outcome.notes,
        proof=outcome.proof,
        verdict=judge(outcome.proof, outcome.rows, sizes, job.recipe.goals, random_data=job.data.is_random),
        seconds=time.perf_counter() - start,
        peak_rss_mb=peak_rss_mb(),
    )


def run_huge(job: Job, model: ir.Model, progress: Progress = lambda _step: None) -> Result:
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
    weakref.finalize(delivery, workspace.remove if workspace.private else workspace.release)  # its tensors lie there
    progress("verify")
    with delivery.as_file() as path:
        proof = check_huge(prepared, streamed, path, samples)
    notes = (f"too large for memory: weights solved layer by layer, compared on {len(samples)} samples",)
    outcome = Outcome(model, delivery, streamed.placement, streamed.rows, notes, proof, _data_facts(job, split, proof))
    return Result(delivery, report_of(job, outcome, start), job.custom_ops, workspace)


def left_out_by(model: ir.Model, job: Job) -> Selector:
    """What the recipe leaves in float."""
    return select_nodes(model, job.recipe.exclude + tuple(rule.match for rule in job.recipe.layers if rule.skip))


def balances(model: ir.Model, job: Job) -> bool:
    """Whether there are products whose activations become integers, and could be made easier for them."""
    wanted = job.recipe.equalize and not job.recipe.weight_only
    return wanted and bool(products_by_input(model, left_out_by(model, job)))


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


def calibrate(
    balanced: Balanced, feeds: Iterable[Feed], job: Job, settings: Settings
) -> tuple[Placement, CalibrationStatistics]:
    """Look at the data once, then leave out the layers that it shows to be fragile."""
    native, model = target_named(job.recipe.target).native, balanced.model
    left_out = balanced.leaves_out(left_out_by(model, job))
    if job.recipe.has_grids:
        placement = place(model, left_out, native=native)
    else:
        placement = place_weights(model, left_out, only_products=job.recipe.is_dynamic)
    wanted = Wanted(tuple(placement.sources), channel_axes(placement), balanced.aside)
    seen = collect(model, feeds, wanted, custom_ops=job.custom_ops, engine=job.engine)
    statistics = replace(seen, histograms=spread(placement, seen.histograms))
    fragile = {}
    if job.recipe.has_grids:
        fragile = fragile_layers(placement, statistics, settings, job.recipe.min_input_sqnr_db)
    if fragile and len(fragile) < len(placement.layers):  # leaving out everything helps nobody: the verdict will tell
        placement = place(model, lambda node: left_out(node) or fragile.get(str(node.outputs[0].name)), native=native)
    return placement, statistics


def lower(model: ir.Model, placement: Placement, plan: QuantPlan, target: Target, *, dynamic: bool = False) -> ir.Model:
    """The one step from float to integers, on a copy."""
    lowered = model.clone()
    InsertQdq(plan, placement)(lowered)
    if dynamic:
        InsertDynamic(plan, placement, target.native)(lowered)
    elif target.native:
        UseNative(plan)(lowered)
    return lowered


def check(job: Job, model: ir.Model, delivery: Delivery, split: SampleSplit) -> Verification:
    """Run the bytes that will be delivered beside the model that came in."""
    samples: Sequence[Sample] | DataReader = split.verification if job.evaluation is None else job.evaluation
    library = native_path() if target_named(job.recipe.target).native else None
    libraries = (*job.custom_ops, *(() if library is None else (library,)))
    with delivery.as_file() as path:
        return verify(
            runnable_source(job.source, model), path, samples, split.first, custom_ops=libraries, metric=job.metric
        )


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's, this peak does not start with that of the parent process
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0][1]) / 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _skipped_note(data: DataReader) -> tuple[str, ...]:
    return (f"{len(data.skipped)} samples skipped, the first: {data.skipped[0]}",) if data.skipped else ()


def _table_note(plan: QuantPlan) -> tuple[str, ...]:
    return tuple(
        f"embedding table {name}: {len(rows.codes)} rows on {rows.params.spec.num_bits} bits"
        for name, rows in plan.tables.items()
    )


def _stored_note(model: ir.Model, placement: Placement, plan: QuantPlan) -> tuple[str, ...]:
    lengths = {encoding.params.spec.num_bits for encoding in plan.stored.values()}
    return tuple(describe(model, placement.stored, bits) for bits in lengths)


def _native_note(lowered: ir.Model) -> tuple[str, ...]:
    count = sum(node.domain == NATIVE_DOMAIN for node in lowered.graph)
    carried = f"{count} operators of domain {NATIVE_DOMAIN}, each with a body of standard ones for other machines"
    return (carried,) if count else ()


def _data_facts(job: Job, split: SampleSplit, proof: Verification) -> DataFacts:
    return DataFacts(
        job.data.description,
        split.fingerprint,
        split.num_calibration,
        proof.comparison.num_samples,
        held_out=bool(split.held_out) or job.evaluation is not None,
        is_random=job.data.is_random,
    )


def _name(source: ModelSource) -> str:
    return Path(source).name if isinstance(source, str | Path) else "model in memory"


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", 0)
