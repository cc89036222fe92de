"""The verb `bench`: models timed side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq bench model.onnx model.int8.onnx --batch 32 --profile")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(), help="What to run on; default: random numbers.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Samples at once (default 1).")
@click.option("--threads", type=click.IntRange(0), default=1, help="Threads inside one operator (default 1).")
@click.option("--seconds", type=click.FloatRange(0), default=5.0, help="Roughly how long to measure (default 5).")
@click.option("--no-native", is_flag=True, help="Leave the operator library out.")
@click.option("--profile", is_flag=True, help="Also say which operators the time goes to.")
@click.option("--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the models need.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@guarded
def bench(models: tuple[Path, ...], **given: Any) -> None:
    """Time MODELS side by side.

    Interleaved, medians, the first once more as a control.
    """
    from ptq.analysis.bench import Setting
    from ptq.api import bench as run_bench
    from ptq.display import Display, bench_table

    setting = Setting(given["custom_ops"], given["threads"], given["seconds"])
    display = Display(quiet=given["as_json"])
    with display.steps() as progress:
        progress("bench")
        found, profiles = run_bench(
            models, given["data"], batch=given["batch"], setting=setting, native=not given["no_native"]
        )
    shown = profiles if given["profile"] else ()
    with ending(0):
        if given["as_json"]:
            click.echo(json.dumps(bench_table(found, shown), sort_keys=True))
        display.bench(found, shown)
