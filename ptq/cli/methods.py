"""Every observer and weight method."""

from __future__ import annotations

import click

from ptq.cli.running import ending, guarded


@click.command()
@guarded
def methods() -> None:
    """List every observer and weight method with its settings."""
    from ptq.display import Display

    with ending(0):
        Display(quiet=False).methods()
