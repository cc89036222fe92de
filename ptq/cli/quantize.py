"""The verb `quantize`: a float model and a calibration set in, a quantized model and its card out."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.cli.helping import Verb, options
from ptq.cli.options import (
    AIM_OPTIONS,
    DATA_OPTIONS,
    ENGINE_OPTIONS,
    GOAL_OPTIONS,
    IMAGE_OPTIONS,
    RECIPE_OPTIONS,
    REPORT_OPTIONS,
    SHARED_OPTIONS,
    engine_of,
    images_of,
    metric_of,
    recipe_of,
    require_data,
)
from ptq.cli.running import GOAL_MISSED, ending, guarded
from ptq.core.errors import RecipeError

if TYPE_CHECKING:
    from ptq.core.progress import Progress
    from ptq.delivery.cache import Cache, Entry
    from ptq.job import Result


MOST_BYTES = 2**20
"""Of a recipe that is looked into for the files that it names."""


@click.command(cls=Verb, example="ptq quantize model.onnx --data calib.npz -o model.int8.onnx --min-sqnr-db 30")
@click.argument("model", type=click.Path(path_type=Path))
@options(
    click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the result goes."),
    click.option(
        "--cache",
        type=click.Path(path_type=Path),
        envvar="PTQ_CACHE",
        help="Folder of finished runs: unchanged, done at once.",
    ),
    click.option(
        "--calibration", type=click.Path(path_type=Path), help="Statistics of --data that `ptq calibrate` wrote."
    ),
    title="Data and result",
)
@options(
    DATA_OPTIONS,
    RECIPE_OPTIONS,
    ENGINE_OPTIONS,
    AIM_OPTIONS,
    GOAL_OPTIONS,
    REPORT_OPTIONS,
    IMAGE_OPTIONS,
    SHARED_OPTIONS,
)
@guarded
def quantize(model: Path, output: Path, **given: Any) -> None:
    """Quantize MODEL and write it to --output.

    Calibrated on --data, checked on samples that were held out, with a card beside it that says what came of it.
    """
    require_data(given)
    cache, key = _cache(model, output, given)
    entry = None if cache is None else cache.find(key)
    if entry is not None and entry.fits(model.parent):
        _repeat(entry, model, output, given)
        return
    from ptq.analysis.front_matter import front_matter
    from ptq.display import Display
    from ptq.files.whole import write_whole
    from ptq.job import cards_of
    from ptq.models.source import external_files
    from ptq.recipe.toml import recipe_toml

    _require_writable(output, [model, *_inputs(given), *external_files(model)], given)
    display = Display(quiet=given["quiet"] or given["as_json"])
    with display.steps() as progress:
        result = _run(model, output, given, progress)
    report = replace(result.report, command=shlex.join(["ptq", *click.get_current_context().obj]))
    passed, cards = report.verdict.passed, cards_of(report, output)
    if given["front_matter"]:
        cards[".card.md"] = front_matter(report).encode() + cards[".card.md"]
    put(output, result, cards)
    _write_page(given["page"], cards)
    if given["save_recipe"] is not None:
        write_whole(given["save_recipe"], recipe_toml(report.recipe).encode())
    if result.workspace is not None:
        result.workspace.remove()
    if cache is not None and passed and result.delivery.data is not None:
        beside = {os.path.relpath(path, model.parent): path for path in external_files(model)}
        cache.keep(key, {"": result.delivery.data, **cards}, beside)
    with ending(0 if passed else GOAL_MISSED):
        if given["as_json"]:
            click.echo(json.dumps({**report.card(), "bench": report.bench()}, sort_keys=True))
        display.result(report, output, given["page"])


def put(output: Path, result: Result, cards: Mapping[str, bytes]) -> None:
    """Write the model to its place, or beside it if it did not pass, and its cards."""
    from ptq.delivery.deliver import deliver, forget_rejected, reject

    if result.report.verdict.passed:
        deliver(output, result.delivery, cards)
        forget_rejected(output)
    else:
        reject(output, result.delivery, cards)


def _require_writable(output: Path, inputs: Sequence[Path], given: Mapping[str, Any]) -> None:
    """Refuse, before the work starts, to overwrite what was given, and what cannot be written."""
    from ptq.delivery.deliver import require_apart, require_writable

    require_writable(output, inputs)
    if given["page"] is not None:
        from ptq.analysis.page import require_extra

        require_extra()
    for place in (given["page"], given["save_recipe"]):
        if place is not None:
            require_apart(output, place)
            require_writable(place, inputs, ("",))


def _write_page(place: Path | None, cards: Mapping[str, bytes]) -> None:
    """Write the page that `ptq report` would make of the cards, if one is asked for."""
    if place is None:
        return
    from ptq.analysis.card_file import read_bench, read_card
    from ptq.analysis.page import page
    from ptq.files.whole import write_whole

    card, bench = read_card(cards[".card.json"], "the card"), read_bench(cards[".bench.json"], "its measurements")
    write_whole(place, page(card, bench))


def _run(model: Path, output: Path, given: dict[str, Any], progress: Progress) -> Result:
    from ptq.api import quantize as run_quantize

    return run_quantize(
        model,
        None if given["random_data"] else given["data"],
        recipe_of(given),
        evaluation=given["eval_data"],
        custom_ops=given["custom_ops"],
        images=images_of(given),
        metric=metric_of(given["metric"]),
        progress=progress,
        workspace=output.with_name(f".{output.name[:80]}.partial"),  # an interrupted run goes on from here
        engine=engine_of(given),
        calibration=given["calibration"],
        profiled=given["page"] is not None,
        advises=True,
    )


def _inputs(given: dict[str, Any]) -> list[Path]:
    """List the files that are read besides the model."""
    from ptq.calibration.remote import local_path

    named = [given[name] for name in ("data", "eval_data", "recipe_path", "calibration") if given[name]]
    paths = (local_path(str(name)) for name in (*named, *given["custom_ops"]))
    return [*(path for path in paths if path is not None), *_bit_plan(given["recipe_path"])]


def _bit_plan(recipe: Path | None) -> list[Path]:
    """The file of the bit plan that a recipe names. What cannot be read is told by whoever has to read it."""
    with suppress(OSError, ValueError, RecursionError):
        if recipe is not None and recipe.is_file() and recipe.stat().st_size <= MOST_BYTES:
            name = tomllib.loads(recipe.read_text(encoding="utf-8")).get("bit_plan")
            plan = None if not isinstance(name, str) else recipe.parent / name
            return [] if plan is None or not plan.is_file() else [plan]
    return []


def _cache(model: Path, output: Path, given: dict[str, Any]) -> tuple[Cache | None, str]:
    """Return the cache of finished runs, and the key of this one in it; None if no cache is asked for."""
    if given["cache"] is None:
        return None, ""
    if given["metric"]:
        raise RecipeError("--cache cannot tell whether the code behind --metric changed; leave one of them")
    from ptq.calibration.remote import local_path
    from ptq.delivery.cache import Cache

    remote = [given[name] for name in ("data", "eval_data") if given[name] and local_path(given[name]) is None]
    if remote:
        raise RecipeError("--cache cannot tell whether data at a URL changed; copy it here, or leave --cache")
    cache = Cache(given["cache"])
    cache.make()
    nothing = ("cache", "as_json", "quiet", "engine", "address", "workers")  # these change nothing about the result
    settings = {name: value for name, value in given.items() if name not in nothing}
    settings |= {"output": output.name, "page": given["page"] is not None}
    return cache, cache.key(settings, [model, *_inputs(given)])


def _repeat(entry: Entry, model: Path, output: Path, given: dict[str, Any]) -> None:
    """Deliver the products of an earlier run on the same inputs."""
    if entry.is_at(output):
        for suffix in entry.products:  # build tools compare times
            output.with_name(output.name + suffix).touch()
    else:
        from ptq.delivery.deliver import deliver

        _require_writable(output, [model, *_inputs(given)], {**given, "page": None})
        deliver(output, entry, {suffix: contents for suffix, contents in entry.products.items() if suffix})
    if given["page"] is not None:
        _require_writable(output, [model, *_inputs(given)], given)
        _write_page(given["page"], entry.products)
    with ending(0):
        if given["as_json"]:
            card, bench = (json.loads(entry.products[suffix]) for suffix in (".card.json", ".bench.json"))
            click.echo(json.dumps({**card, "bench": bench}, sort_keys=True))
        elif not given["quiet"]:
            click.echo(f"unchanged since it was made before -> {output}, card in {output.name}.card.md")
