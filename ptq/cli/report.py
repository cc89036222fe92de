"""The verb `report`: a page for people from a card."""

from __future__ import annotations

from pathlib import Path

import click

from ptq.cli.helping import Verb
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq report model.int8.onnx.card.json -o model.html")
@click.argument("card", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the page goes; default: beside the card.")
@guarded
def report(card: Path, output: Path | None) -> None:
    """Write CARD (.card.json) as one HTML file.

    With the measurements, if .bench.json lies beside it.
    """
    from ptq.api import report as write_report

    place = write_report(card, output)
    with ending(0):
        click.echo(f"{place.stat().st_size:>12,}  {place}")
