"""A float model and a calibration set in, a quantized model and its card out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ptq.cli.options import (
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
    options,
    recipe_of,
    require_data,
)
from ptq.cli.running import GOAL_MISSED, ending, guarded


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the quantized model goes.")
@options(DATA_OPTIONS, RECIPE_OPTIONS, ENGINE_OPTIONS, GOAL_OPTIONS, REPORT_OPTIONS, IMAGE_OPTIONS, SHARED_OPTIONS)
@guarded
def quantize(model: Path, output: Path, **given: Any) -> None:
    """Quantize MODEL with the calibration set --data and write it to --output, its card beside it."""
    from ptq.analysis.front_matter import front_matter
    from ptq.api import quantize as run_quantize
    from ptq.delivery import deliver
    from ptq.display import Display
    from ptq.pipeline import cards_of

    require_data(given)
    data = None if given["random_data"] else given["data"]
    _require_writable(model, output, given)
    display = Display(quiet=given["quiet"] or given["as_json"])
    workspace = output.with_name(f".{output.name[:80]}.partial")  # an interrupted run on a huge model goes on from here
    with display.steps() as progress:
        result = run_quantize(
            model,
            data,
            recipe_of(given),
            evaluation=given["eval_data"],
            custom_ops=given["custom_ops"],
            images=images_of(given),
            metric=metric_of(given["metric"]),
            progress=progress,
            workspace=workspace,
            engine=engine_of(given),
            profiled=given["page"] is not None,
        )
    report = replace(result.report, command=shlex.join(["ptq", *click.get_current_context().obj]))
    passed, cards = report.verdict.passed, cards_of(report, output)
    if given["front_matter"]:
        cards[".card.md"] = front_matter(report).encode() + cards[".card.md"]
    deliver(output, result.delivery if passed else None, cards)
    if given["page"] is not None:
        _write_page(given["page"], cards)
    if result.workspace is not None:
        result.workspace.remove()
    with ending(0 if passed else GOAL_MISSED):
        if given["as_json"]:
            click.echo(json.dumps({**report.card(), "bench": report.bench()}, sort_keys=True))
        display.result(report, output, given["page"])


def _require_writable(model: Path, output: Path, given: Mapping[str, Any]) -> None:
    """Find out before the work starts that nothing given is overwritten, and all that was asked for can be written."""
    from ptq.analysis.page import require_extra
    from ptq.delivery import require_apart, require_writable
    from ptq.modelfile import external_files

    named = [
        model,
        *given["custom_ops"],
        *(given[name] for name in ("data", "eval_data", "recipe_path") if given[name]),
    ]
    inputs = [*map(Path, named), *external_files(model)]
    require_writable(output, inputs)
    if given["page"] is not None:
        require_extra()
        require_apart(output, given["page"])
        require_writable(given["page"], inputs, ("",))


def _write_page(place: Path, cards: Mapping[str, bytes]) -> None:
    """The page that `ptq report` would make of the cards."""
    from ptq.analysis.card_file import read_bench, read_card
    from ptq.analysis.page import page
    from ptq.delivery import deliver_file

    card, bench = read_card(cards[".card.json"], "the card"), read_bench(cards[".bench.json"], "its measurements")
    deliver_file(place, page(card, bench))
