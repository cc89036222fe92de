"""The verb `validate`: any two models side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb, options
from ptq.cli.options import GOAL_OPTIONS, IMAGE_OPTIONS, SHARED_OPTIONS, goals_of, images_of, metric_of
from ptq.cli.running import GOAL_MISSED, ending, guarded


@click.command(cls=Verb, example="ptq validate model.onnx model.int8.onnx --data eval.npz --max-drop 0.005")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(), help="Data to compare on; labels give top-1 and top-5.")
@click.option("--samples", type=click.IntRange(1), default=1_000_000, show_default=False, help="Most samples read.")
@options(GOAL_OPTIONS, IMAGE_OPTIONS, SHARED_OPTIONS)
@guarded
def validate(reference: Path, model: Path, **given: Any) -> None:
    """Compare MODEL with REFERENCE on data.

    Any two ONNX models with the same inputs.
    """
    from ptq.api import validate as run_validate
    from ptq.display import Display, validation_table

    display = Display(quiet=given["quiet"] or given["as_json"])
    with display.steps() as progress:
        validation = run_validate(
            reference,
            model,
            given["data"],
            goals=goals_of(given),
            accept_poor=given["accept_poor"],
            limit=given["samples"],
            custom_ops=given["custom_ops"],
            images=images_of(given),
            metric=metric_of(given["metric"]),
            progress=progress,
        )
    with ending(0 if validation.verdict.passed else GOAL_MISSED):
        if given["as_json"]:
            click.echo(json.dumps(validation_table(validation), sort_keys=True))
        display.validation(validation)
