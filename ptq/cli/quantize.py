"""A float model and a calibration set in, a quantized model and its card out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb, options
from ptq.cli.options import (
    DATA_OPTIONS,
    ENGINE_OPTIONS,
    GOAL_OPTIONS,
    IMAGE_OPTIONS,
    RECIPE_OPTIONS,
    SHARED_OPTIONS,
    engine_of,
    images_of,
    metric_of,
    recipe_of,
    require_data,
)
from ptq.cli.running import GOAL_MISSED, ending, guarded


@click.command(cls=Verb, example="ptq quantize model.onnx --data calib.npz -o model.int8.onnx --min-sqnr-db 30")
@click.argument("model", type=click.Path(path_type=Path))
@options(
    click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the result goes."),
    title="Data and result",
)
@options(DATA_OPTIONS, RECIPE_OPTIONS, ENGINE_OPTIONS, GOAL_OPTIONS, IMAGE_OPTIONS, SHARED_OPTIONS)
@guarded
def quantize(model: Path, output: Path, **given: Any) -> None:
    """Quantize MODEL and write it to --output.

    Calibrated on --data, checked on samples that were held out, with a card beside it that says what came of it.
    """
    from ptq.api import quantize as run_quantize
    from ptq.delivery import deliver, require_writable
    from ptq.display import Display
    from ptq.modelfile import external_files
    from ptq.pipeline import cards_of

    require_data(given)
    data = None if given["random_data"] else given["data"]
    named = [
        model,
        *given["custom_ops"],
        *(given[name] for name in ("data", "eval_data", "recipe_path") if given[name]),
    ]
    require_writable(output, [*map(Path, named), *external_files(model)])
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
        )
    passed = result.report.verdict.passed
    if passed:
        result.save(output)
    else:
        deliver(output, None, cards_of(result.report, output))
    if result.workspace is not None:
        result.workspace.remove()
    with ending(0 if passed else GOAL_MISSED):
        if given["as_json"]:
            click.echo(json.dumps({**result.report.card(), "bench": result.report.bench()}, sort_keys=True))
        display.result(result.report, output)
