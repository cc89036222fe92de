"""The library's front door: everything the command line does, as functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptq.analysis.bench import Bench, Setting, profile
from ptq.analysis.bench import bench as bench_models
from ptq.analysis.card_file import contents, read_bench, read_card
from ptq.analysis.compare import Comparison, Metric, compare
from ptq.analysis.diff import Diff, Pair
from ptq.analysis.diff import diff as diff_models
from ptq.analysis.diff.causes import Names
from ptq.analysis.floor import worst_standing
from ptq.analysis.latency import Latency, measure_latency
from ptq.analysis.page import page, require_extra
from ptq.analysis.verdict import (
    Verdict,
    count_goals,
    in_order,
    judge_accuracy,
    judge_floor,
    judge_latency,
    word_for,
)
from ptq.calibration.executor import LOCAL, Executor
from ptq.calibration.images import ImageOptions
from ptq.calibration.reader import DataReader, open_data, random_data
from ptq.calibration.record import CalibrationRecord
from ptq.calibration.shards import CalibrationShards, Shard
from ptq.core.errors import InputError, RecipeError
from ptq.core.progress import Progress, counted, silent
from ptq.delivery.deliver import require_writable
from ptq.exporters import EXPORTERS, Bundle, Example, export_bundle, require_free
from ptq.files.checkpoints import Checkpoints
from ptq.files.whole import write_whole
from ptq.job import Job, Result
from ptq.models.load import load_model
from ptq.models.probe import require_survivable
from ptq.models.sessions import naming, session_of
from ptq.models.sessions import run as run_session
from ptq.models.source import ModelSource, input_specs, runnable_source
from ptq.pipeline import run_calibration
from ptq.recipe import Goals, Recipe
from ptq.recipe.channels import FEWEST
from ptq.runtime.native import native_path
from ptq.squeezed.run import run_squeezed
from ptq.tuning import tune
from ptq.tuning.fewest import fewest


def quantize(  # noqa: PLR0913 - the front door names every option
    model: ModelSource,
    data: Any,
    recipe: Recipe | None = None,
    *,
    evaluation: Any = None,
    custom_ops: Sequence[str | Path] = (),
    images: ImageOptions | None = None,
    metric: tuple[str, Metric] | None = None,
    progress: Progress = silent,
    workspace: Path | None = None,
    engine: Executor = LOCAL,
    calibration: str | Path | None = None,
    profiled: bool = False,
    advises: bool = False,
) -> Result:
    """Quantize a float model.

    Args:
        model: Path, serialized bytes, `onnx.ModelProto` or `onnx_ir.Model`.
        data: Calibration set: path or URL of .npz, .npy, .jsonl, .parquet or an image folder; array; mapping of
            arrays; any iterable of feeds; any onnxruntime `CalibrationDataReader`. None means random data, marked as
            such.
        recipe: Decisions; default: static int8 for this machine.
        evaluation: Data to verify on, likewise; default: part of `data` is held out.
        custom_ops: Libraries with operators that the model needs. Their code runs.
        images: How to read an image folder.
        metric: Name and function of a metric over (outputs, labels), higher is better.
        progress: Called with the name of each step; a method `advance(done, total)`, if it has one, hears how far.
        workspace: Folder from which an interrupted run goes on. Its content may be lost any time.
        engine: Where the calibration set is run: `ptq.calibration.engine.Threads` or `Ray`; the result is the same.
        calibration: Statistics of the whole of `data`, made by `calibrate` with the same model and recipe.
        profiled: Also measure which operators the time of both models goes to, for `report`.
        advises: Also measure what would help, where the model misses a goal, is poor or slower than float: findings of
            the verdict name it.

    Returns:
        The result: `.save(path)`, `.session()`, `.report`.

    Raises:
        PtqError: Model, data or recipe cannot be used; the message says what to do.
    """
    recipe = recipe or Recipe()
    repeats = recipe.search or recipe.optimize == "latency" or recipe.squeeze == FEWEST
    once = ("__next__", "get_next")
    flows_by = any(hasattr(each, name) for each in (data, evaluation) for name in once)
    if repeats and flows_by:
        raise RecipeError("search and optimize need the data more than once; give a list, arrays or a file")
    reader, other = _open(model, (data, evaluation), recipe, images)
    shards = CalibrationShards(checkpoints=Checkpoints(workspace))
    if calibration is not None:
        shards = CalibrationShards(known=CalibrationRecord.load(calibration), source=str(calibration), complete=True)
    with naming(model):
        job = Job(model, reader, recipe, other, tuple(custom_ops), metric, workspace, engine, shards)
        return tune(replace(job, profiled=profiled, flows_by=flows_by, advises=advises), progress)


def squeeze(  # noqa: PLR0913 - the front door names every option
    model: ModelSource,
    data: Any,
    which: str = "auto",
    *,
    max_macs: float | None = None,
    target: str | None = None,
    samples: int = 512,
    goals: Goals | None = None,
    evaluation: Any = None,
    custom_ops: Sequence[str | Path] = (),
    images: ImageOptions | None = None,
    progress: Progress = silent,
    engine: Executor = LOCAL,
) -> Result:
    """Take channels that carry nothing out of a float model.

    Args:
        model: As for `quantize`.
        data: Likewise: what the channels are watched on.
        which: Channels that leave: `proved`, `auto`, a share, or `fewest` with a goal, as `Recipe.squeeze`.
        max_macs: Products that may be left, as `Recipe.max_macs`; needs a goal.
        target: Whose kernels decide how many channels stay; default: this machine's.
        samples: Most samples read.
        goals: What the smaller model has to reach.
        evaluation: Data to verify on; default: part of `data` is held out.
        custom_ops: Libraries the model needs.
        images: How to read an image folder.
        progress: Called with the name of each step.
        engine: Where samples are run.

    Returns:
        The result: a float model, and its report.

    Raises:
        PtqError: Model or data cannot be used.
    """
    recipe = Recipe(
        target, weight_only=True, equalize=False, squeeze=which, max_macs=max_macs, samples=samples,
        goals=goals or Goals(),
    )  # fmt: skip
    reader, other = _open(model, (data, evaluation), recipe, images)
    with naming(model):
        job = Job(model, reader, recipe, other, tuple(custom_ops), engine=engine)
        return fewest(job, run_squeezed, progress) if which == FEWEST else run_squeezed(job, progress)


def calibrate(  # noqa: PLR0913 - the front door names every option
    model: ModelSource,
    data: Any,
    recipe: Recipe | None = None,
    *,
    shard: Shard | None = None,
    evaluation: Any = None,
    custom_ops: Sequence[str | Path] = (),
    images: ImageOptions | None = None,
    progress: Progress = silent,
    notes: Path | None = None,
    engine: Executor = LOCAL,
    calibration: str | Path | None = None,
) -> CalibrationRecord:
    """Run a model over a calibration set, or a shard of it, and keep what was seen.

    A model whose channels are evened out is run twice: the second time as the first one made it. Shards of such a model
    come in two rounds: merge the first one, and give the result as `calibration` to the second.

    Args:
        model: As for `quantize`.
        data: Likewise; the whole set, whatever the shard.
        recipe: That will be quantized with.
        shard: The parts to be run here; default: all.
        evaluation: As for `quantize`: with it, no sample is held out.
        custom_ops: Libraries the model needs.
        images: How to read an image folder.
        progress: Called with the name of each step.
        notes: File in a folder from which an interrupted run goes on.
        engine: Where samples are run.
        calibration: What the first round has seen of the whole set.

    Returns:
        The record: `.save(path)` makes the file that `quantize` takes, `.merge(other)` adds another shard's.

    Raises:
        PtqError: Model, data or recipe cannot be used.
    """
    recipe = recipe or Recipe()
    reader, other = _open(model, (data, evaluation), recipe, images)
    known = CalibrationRecord() if calibration is None else CalibrationRecord.load(calibration)
    source = "" if calibration is None else str(calibration)
    shards = CalibrationShards(shard or Shard(), known, source, Checkpoints(None if notes is None else notes.parent))
    with naming(model):
        return run_calibration(
            Job(model, reader, recipe, other, tuple(custom_ops), engine=engine, shards=shards), progress
        )


def merge(paths: Sequence[str | Path]) -> CalibrationRecord:
    """Merge the records of several shards into one.

    Args:
        paths: Their files.

    Raises:
        InputError: One is no record, belongs to something else, or is given twice; names it.
    """
    first, *others = paths
    whole = CalibrationRecord.load(first)
    for path in others:
        part = CalibrationRecord.load(path)
        with _named(path):
            whole = whole.merge(part)
    return whole


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _open(
    model: ModelSource, sources: tuple[Any, Any], recipe: Recipe, images: ImageOptions | None
) -> tuple[DataReader, DataReader | None]:
    """Open the calibration set, random numbers if there is none, and the data to verify on."""
    (data, evaluation), specs = sources, input_specs(load_model(model))
    reader = (
        random_data(specs, min(recipe.samples, RANDOM_SAMPLES), recipe.seed)
        if data is None
        else open_data(data, specs, limit=recipe.samples, images=images, skip_bad=recipe.skip_bad_samples)
    )
    if evaluation is None:
        return reader, None
    limit = EVALUATION_SAMPLES
    return reader, open_data(evaluation, specs, limit=limit, images=images, skip_bad=recipe.skip_bad_samples)


def bench(
    models: Sequence[str | Path],
    data: Any = None,
    *,
    batch: int = 1,
    setting: Setting | None = None,
    native: bool = True,
) -> tuple[Bench, tuple[Mapping[str, tuple[int, float]], ...]]:
    """Time models side by side and profile each.

    Args:
        models: Paths; the first is what the others are compared with.
        data: Input data as for `quantize`; None means random numbers.
        batch: Samples at once.
        setting: Libraries, threads, time to measure.
        native: Register the operator library where it is usable.

    Returns:
        The timings, and for each model its operators with node counts and milliseconds.

    Raises:
        PtqError: A model or the data cannot be used.
    """
    paths = [Path(model) for model in models]
    specs = input_specs(load_model(paths[0]))
    reader = random_data(specs, batch, 0) if data is None else open_data(data, specs, limit=batch, keep_padding=True)
    feeds = [sample.feed for sample in reader]
    if len({tuple(array.shape for array in feed.values()) for feed in feeds}) > 1:
        raise InputError(f"{reader.description}: different shapes make no batch; pad them, or take --batch 1")
    feed = {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]} if len(feeds) > 1 else feeds[0]
    setting = setting or Setting()
    library = native_path() if native else None
    if library is not None:
        setting = replace(setting, custom_ops=(*setting.custom_ops, library))
    return bench_models(paths, feed, setting), tuple(profile(path, feed, setting) for path in paths)


CARD, BENCH, PAGE = ".card.json", ".bench.json", ".report.html"


def report(card: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a card, and of the measurements if they lie beside it.

    Args:
        card: Path of a .card.json.
        output: Where the page goes; default: beside the card, as .report.html.

    Returns:
        Where it went.

    Raises:
        PtqError: The card or its measurements are none, the page cannot be written, or a package is missing.
    """
    require_extra()
    source = Path(card)
    facts, stem = read_card(contents(source), str(source)), source.name.removesuffix(CARD)
    measured = source.with_name(stem + BENCH)
    bench = read_bench(contents(measured), str(measured)) if measured.exists() else None
    place = source.with_name(stem + PAGE) if output is None else Path(output)
    require_writable(place, [source, measured], ("",))
    write_whole(place, page(facts, bench))
    return place


def export(
    model: str | Path,
    folder: str | Path,
    *,
    target: str,
    data: Any = None,
    float_model: str | Path | None = None,
    images: ImageOptions | None = None,
) -> tuple[Path, ...]:
    """Write a model with everything that another kind of machine needs to run and check it.

    Args:
        model: Path of any ONNX model.
        folder: New, empty, or of an earlier export.
        target: `ort-mobile`, `web`, `arm64` or `native`.
        data: Samples that go along, as for `quantize`; None means one of random numbers.
        float_model: The model before quantization; a page shows it beside.
        images: How to read an image folder.

    Returns:
        Paths of the files.

    Raises:
        PtqError: The model, data or folder cannot be used.
    """
    path, beside = Path(model), None if float_model is None else Path(float_model)
    require_free(Path(folder))
    if target not in EXPORTERS:
        raise RecipeError(f"export target is {target!r}; expected one of {', '.join(EXPORTERS)}")
    loaded = load_model(path)
    if beside is not None:
        load_model(beside)
    specs = input_specs(loaded)
    reader = (
        random_data(specs, 1, 0)
        if data is None
        else open_data(data, specs, limit=EXPORTED, images=images, keep_padding=True)
    )
    examples = []
    with session_of(runnable_source(path, loaded)) as session:
        names = [value.name for value in session.get_outputs()]
        for sample in reader:
            outputs = dict(zip(names, run_session(session, dict(sample.feed)), strict=True))
            examples.append(Example(sample.feed, outputs, sample.label))
    return export_bundle(Bundle(path, examples, beside), target, Path(folder))


EXPORTED = 12
"""Number of samples that go along with an export."""

RANDOM_SAMPLES = 16
EVALUATION_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Validation:
    """Comparison of two models, with a verdict.

    Attributes:
        comparison: Their outputs.
        latency: Their time on one sample.
        verdict: Whether the goals were met.
    """

    comparison: Comparison
    latency: Latency
    verdict: Verdict


def validate(  # noqa: PLR0913 - the front door names every option
    reference: ModelSource,
    model: ModelSource,
    data: Any,
    *,
    goals: Goals | None = None,
    accept_poor: bool = False,
    limit: int = EVALUATION_SAMPLES,
    custom_ops: Sequence[str | Path] = (),
    images: ImageOptions | None = None,
    metric: tuple[str, Metric] | None = None,
    progress: Progress = silent,
) -> Validation:
    """Compare any two ONNX models on data.

    Args:
        reference: The float model.
        model: The model to judge.
        data: As in `quantize`; labels give top-1 and top-5.
        goals: What `model` has to reach.
        accept_poor: Whether a model below the default floor passes, where no goal for accuracy is set.
        limit: Most samples read.
        custom_ops: Libraries that the models need.
        images: How to read an image folder.
        metric: Name and function of a user metric.
        progress: As in `quantize`.

    Returns:
        Outputs, latency, and whether the goals were met.

    Raises:
        PtqError: A model or the data cannot be used.
    """
    float_model = load_model(reference)
    reader: DataReader = open_data(data, input_specs(float_model), limit=limit, images=images)
    forms = (runnable_source(reference, float_model), runnable_source(model, load_model(model)))
    samples = iter(reader)
    first = next(samples)  # an empty reader raises by itself
    for form in forms:
        require_survivable(form, first.feed, custom_ops)
    progress("verify")
    seen = counted(itertools.chain([first], samples), reader.num_samples, progress)
    comparison = compare(*forms, seen, custom_ops=custom_ops, metric=metric)
    latency = measure_latency(*forms, first.feed, custom_ops=custom_ops)
    wanted = goals or Goals()
    standing = worst_standing(comparison)
    findings = [*judge_accuracy(comparison, wanted), *judge_latency(latency, wanted)]
    findings += judge_floor(standing, own=wanted.for_accuracy or accept_poor)
    word = word_for(findings, wanted, standing)
    return Validation(comparison, latency, Verdict(in_order(findings), count_goals(wanted), standing.text, word))


def diff(  # noqa: PLR0913 - the front door names every option
    reference: ModelSource,
    model: ModelSource,
    data: Any,
    *,
    limit: int = 64,
    custom_ops: Sequence[str | Path] = (),
    images: ImageOptions | None = None,
    progress: Progress = silent,
) -> Diff:
    """Find out which layers of a quantized model cost its accuracy, and what mends them.

    Args:
        reference: The float model.
        model: Its quantized model, of this tool or another; layers are switched where it has Q/DQ pairs.
        data: As in `quantize`.
        limit: Most samples read; shares are measured on the first 16.
        custom_ops: Libraries that the models need.
        images: How to read an image folder.
        progress: Called with the name of each step.

    Returns:
        SQNR and share of the final error for every layer, the worst samples, and findings with a command for each.

    Raises:
        PtqError: The models or the data cannot be used, or the models do not belong together.
    """
    given = {"FLOAT": reference, "QUANT": model, "DATA": data}
    names = Names(*(str(each) if isinstance(each, str | Path) else word for word, each in given.items()))
    pair = Pair(reference, model, names, tuple(custom_ops))
    return diff_models(pair, open_data(data, input_specs(load_model(reference)), limit=limit, images=images), progress)
