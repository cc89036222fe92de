"""Jobs, contexts and results of runs: what a run works on, what of it is looked up once, and what it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ptq.analysis.card import card_markdown
from ptq.analysis.compare import Metric
from ptq.analysis.outcome import Outcome, data_facts, notes_of, overflow_note, report_of
from ptq.analysis.report import DataFacts, QuantReport
from ptq.analysis.verify import Verification, verify, with_operators
from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.executor import Executor, Threads
from ptq.calibration.reader import DataReader
from ptq.calibration.replay import SampleReplay
from ptq.calibration.sample import repeated
from ptq.calibration.shards import CalibrationShards
from ptq.calibration.split import SampleSplit, split_samples
from ptq.calibration.store import ArrayStore
from ptq.core.plan import QuantPlan
from ptq.core.progress import Progress, counted, silent
from ptq.delivery.deliver import Delivery, deliver
from ptq.delivery.workspace import Workspace
from ptq.files.checkpoints import Checkpoints, checkpoint_key
from ptq.models.load import load_model
from ptq.models.source import ModelSource, runnable_source, source_fingerprint
from ptq.modes import Mode, mode_of
from ptq.passes.given import SOURCE_HASH
from ptq.recipe import Recipe
from ptq.recipe.toml import recipe_to
from ptq.runtime.native import native_path
from ptq.runtime.opening import open_session
from ptq.solving.choices import Choices
from ptq.solving.grids import uneven_concats
from ptq.solving.plan import Problem
from ptq.target import Target, target_named

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


@dataclass(frozen=True)
class Result:
    """Result of a run; nothing is on disk yet.

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
    """Return the card of a model at `output` as JSON and Markdown, and the measurements, by suffix of the path."""
    named = replace(report, quantized_model=replace(report.quantized_model, name=output.name))
    bench = json.dumps(named.bench(), indent=2, sort_keys=True) + "\n"
    texts = {".card.json": named.card_json(), ".card.md": card_markdown(named), ".bench.json": bench}
    return {suffix: text.encode() for suffix, text in texts.items()}


@dataclass(frozen=True)
class Job:
    """Model, data and recipe of one run.

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
        shards: What was seen of it before, and which parts are looked at here.
        profiled: Also measure which operators the time of both models goes to.
        flows_by: The data can be read but once: nothing can be tried again.
        advises: Measure what would help, where the model is not good enough or not faster.
    """

    source: ModelSource
    data: DataReader
    recipe: Recipe = field(default_factory=Recipe)
    evaluation: DataReader | None = None
    custom_ops: tuple[str | Path, ...] = ()
    metric: tuple[str, Metric] | None = None
    workspace: Path | None = None
    engine: Executor = field(default_factory=Threads)
    shards: CalibrationShards = field(default_factory=CalibrationShards)
    profiled: bool = False
    flows_by: bool = False
    advises: bool = False


MEMORY = 96 * 2**20
"""Bytes of values that wait in memory between two layers; more go to temporary files."""


@dataclass(frozen=True)
class Context:
    """A job with everything looked up that the run needs again and again.

    Attributes:
        job: Model, data and recipe.
        model: The model as it came.
        target: Where it will run.
        mode: What will run on integers.
        progress: Told the name of each step, and how far it is.
    """

    job: Job
    model: ir.Model
    target: Target
    mode: Mode
    progress: Progress = silent

    @staticmethod
    def of(job: Job, progress: Progress = silent) -> Context:
        """Look up target and mode, and load the model.

        Raises:
            InputError: The model cannot be read.
        """
        progress("prepare")
        job = replace(job, recipe=job.recipe.settled(random_data=job.data.is_random))
        target = target_named(job.recipe.target)
        return Context(job, load_model(job.source), target, mode_of(job.recipe, target), progress)

    @property
    def form(self) -> str | Path | bytes:
        """The model as it came, in a form that onnxruntime opens."""
        return runnable_source(self.job.source, self.model)

    @property
    def libraries(self) -> tuple[str | Path, ...]:
        """Libraries of operators that the quantized model needs."""
        library = native_path() if self.target.native else None
        return (*self.job.custom_ops, *(() if library is None else (library,)))

    @contextmanager
    def calibration(self) -> Iterator[CalibrationSet]:
        """Open the calibration set, a part of it held out; what waits for further passes goes when the context ends."""
        job = self.job
        split = split_samples(job.data, hold_out=job.evaluation is None)
        with ArrayStore(MEMORY) as store, job.engine.open():
            samples = SampleReplay(store, job.custom_ops, job.engine)
            yield CalibrationSet(split, samples, job.shards, self.progress, is_random=job.data.is_random)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the delivered file: where it came from."""
        return {SOURCE_HASH: source_fingerprint(self.job.source, self.model)}

    def augments(self, choices: Choices) -> bool:
        """Whether weights are also fitted to copies of texts with other words in them."""
        return choices.walks and self.job.recipe.other_words

    def checkpoints(self, calibration: CalibrationSet) -> Checkpoints:
        """Return the store of solved layers, known by everything that decides what they become."""
        if self.job.workspace is None:
            return Checkpoints()
        origin, recipe = calibration.record.latest.origin, recipe_to(self.job.recipe)
        parts = (origin, calibration.split.fingerprint, recipe, self.target.name)
        return Checkpoints(self.job.workspace, checkpoint_key(*parts))

    def check(self, delivery: Delivery, split: SampleSplit) -> Verification:
        """Run the bytes that will be delivered beside the model that came in."""
        job, libraries = self.job, self.libraries
        samples = split.verification if job.evaluation is None else job.evaluation
        total = len(split.verification) if job.evaluation is None else job.evaluation.num_samples
        timed = replace(split.first, feed=repeated(split.first.feed, job.recipe.latency_batch))
        with delivery.as_file() as path:
            shown = counted(samples, total, self.progress)
            proof = verify(self.form, path, shown, timed, custom_ops=libraries, metric=job.metric)
            return with_operators(proof, self.form, path, timed, libraries) if job.profiled else proof

    def notes_on(self, problem: Problem, plan: QuantPlan, lowered: ir.Model) -> tuple[str, ...]:
        """List what a user should know of a lowered model.

        Args:
            problem: What was solved.
            plan: What came of it.
            lowered: The model that is delivered.
        """
        overflow = overflow_note(self.target) if self.mode.rounds_activations else ()
        concats = uneven_concats(problem.model, problem.placement, problem.histograms)
        return (*notes_of(self.job.data, problem.model, problem.placement, plan, lowered), *overflow, *concats)

    def facts(self, split: SampleSplit, proof: Verification) -> DataFacts:
        """Describe the data that the figures are from."""
        return data_facts(self.job.data, split, proof, evaluated=self.job.evaluation is not None)

    def result(self, outcome: Outcome, start: float, workspace: Workspace | None = None) -> Result:
        """Judge an outcome, and return it as what a caller gets.

        Args:
            outcome: What the run ended with.
            start: When it began, seconds of `time.perf_counter`.
            workspace: Where it kept what it would have gone on from; default: the job's.
        """
        job = self.job
        if workspace is None and job.workspace is not None:
            workspace = Workspace(job.workspace)
        return Result(outcome.delivery, report_of(job.source, job.recipe, outcome, start), job.custom_ops, workspace)
