"""The verb `methods`: every observer and weight method."""

from __future__ import annotations

import click

from ptq.cli.helping import Verb
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq methods")
@guarded
def methods() -> None:
    """List observers and weight methods."""
    from ptq.display import Display

    with ending(0):
        Display(quiet=False).methods()
