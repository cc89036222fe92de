"""Every observer and weight method."""

from __future__ import annotations

import click

from ptq.cli.running import guarded


@click.command()
@guarded
def methods() -> None:
    """List every observer and weight method with its settings."""
    from ptq.display import Display

    Display(quiet=False).methods()
