"""The verb `inspect`: what a model is, and what quantization would do to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb, propose_targets
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq inspect model.onnx --data calib.npz --plot layers.svg")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(), help="Calibration set, of which a few samples show the ranges of inputs.")
@click.option(
    "--target",
    shell_complete=propose_targets,
    help="What it would be quantized for, see `ptq quantize --help`; default: this machine.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw MACs and bytes per layer to this SVG file.")
@click.option("--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the model needs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@guarded
def inspect(model: Path, **given: Any) -> None:
    """Say what MODEL is and what it would become.

    Its modules and layers, which of them would be quantized, and what that would give and take.
    """
    from ptq.display import Display
    from ptq.inspection import inspect_model

    if given["plot"]:
        from ptq.inspection.plot import require_plotting

        require_plotting(given["plot"], model)
    display = Display(quiet=given["as_json"])
    with display.steps() as progress:
        progress("inspect")
        facts = inspect_model(model, given["custom_ops"], target=given["target"], data=given["data"])
    if given["plot"]:
        from ptq.inspection.plot import plot

        plot(facts, given["plot"])
    with ending(0):
        if given["as_json"]:
            click.echo(json.dumps(facts, sort_keys=True))
        display.inspection(model.name, facts)
