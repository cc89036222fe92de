"""The verb `export`: a model with all that another kind of machine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb, options, propose_exports
from ptq.cli.options import IMAGE_OPTIONS, images_of
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq export model.int8.onnx --target web --data eval.npz -o page/")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    shell_complete=propose_exports,
    help="ort-mobile, web, arm64, or native (a C program here).",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to be written.")
@click.option("--data", type=click.Path(), help="Samples to check the other machine with; default: random numbers.")
@click.option(
    "--float",
    "float_model",
    type=click.Path(path_type=Path),
    help="For a page: the float model, to be shown beside it.",
)
@options(IMAGE_OPTIONS)
@guarded
def export(model: Path, output: Path, **given: Any) -> None:
    """Write MODEL for another kind of machine.

    With all that it needs to run it and to check its outputs.
    """
    from ptq.api import export as run_export

    paths = run_export(
        model,
        output,
        target=given["target"],
        data=given["data"],
        float_model=given["float_model"],
        images=images_of(given),
    )
    with ending(0):
        for path in paths:
            click.echo(f"{path.stat().st_size:>12,}  {path}")
