"""The verb `squeeze`: a float model without the channels that carry nothing."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb, options, propose_targets
from ptq.cli.options import (
    DATA_OPTIONS,
    ENGINE_OPTIONS,
    GOAL_OPTIONS,
    IMAGE_OPTIONS,
    MAX_MACS,
    SHARED_OPTIONS,
    engine_of,
    goals_of,
    images_of,
    is_goal,
    require_data,
    share_of,
)  # fmt: skip
from ptq.cli.quantize import put
from ptq.cli.running import GOAL_MISSED, ending, guarded


@click.command(cls=Verb, example="ptq squeeze model.onnx --data calib.npz -o model.squeezed.onnx")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the result goes.")
@click.option(
    "--squeeze",
    default="auto",
    metavar="WHICH",
    help="proved, auto (those that carry nothing, the default), a share of an 8-bit step that they move by, or as many "
    "as a goal allows, such as 'agreement >= 0.95'.",
)
@click.option("--max-macs", metavar="SHARE", help=MAX_MACS)
@click.option("--target", shell_complete=propose_targets, help="Whose kernels it is for; default: this machine's.")
@options(DATA_OPTIONS, GOAL_OPTIONS, IMAGE_OPTIONS, ENGINE_OPTIONS, SHARED_OPTIONS)
@guarded
def squeeze(model: Path, output: Path, target: str | None, **given: Any) -> None:
    """Remove channels that carry nothing, in float.

    `ptq quantize` does that by itself, before anything else.
    """
    require_data(given)
    from ptq.api import squeeze as run_squeeze
    from ptq.calibration.remote import local_path
    from ptq.delivery.deliver import require_writable
    from ptq.display import Display
    from ptq.job import cards_of
    from ptq.models.source import external_files

    named = (local_path(str(given[name])) for name in ("data", "eval_data") if given[name])
    require_writable(output, [model, *(path for path in named if path is not None), *external_files(model)])
    display = Display(quiet=given["quiet"] or given["as_json"])
    with display.steps() as progress:
        result = run_squeeze(
            model,
            None if given["random_data"] else given["data"],
            "fewest" if is_goal(given["squeeze"]) else given["squeeze"],
            max_macs=share_of(given["max_macs"], "--max-macs") if given["max_macs"] else None,
            target=target,
            samples=given["samples"] or 512,
            goals=goals_of(given),
            evaluation=given["eval_data"],
            custom_ops=given["custom_ops"],
            images=images_of(given),
            progress=progress,
            engine=engine_of(given),
        )
    report = replace(result.report, command=shlex.join(["ptq", *click.get_current_context().obj]))
    put(output, result, cards_of(report, output))
    with ending(0 if report.verdict.passed else GOAL_MISSED):
        if given["as_json"]:
            click.echo(json.dumps({**report.card(), "bench": report.bench()}, sort_keys=True))
        display.result(report, output)
