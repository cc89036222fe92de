"""A model with all that another kind of machine needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ptq.cli.options import IMAGE_OPTIONS, images_of, options
from ptq.cli.running import ending, guarded


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="ort-mobile, web, arm64, or native (a C program here).")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to be written.")
@click.option("--data", help="Samples that go along to check the other machine with; default: random numbers.")
@click.option(
    "--float",
    "float_model",
    type=click.Path(path_type=Path),
    help="For a page: the float model, to be shown beside it.",
)
@options(IMAGE_OPTIONS)
@guarded
def export(model: Path, output: Path, **given: Any) -> None:
    """Write MODEL with all that another kind of machine needs to run it and to check its outputs."""
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
