"""The verb `merge`: calibrations of several machines put together."""

from __future__ import annotations

from pathlib import Path

import click

from ptq.cli.helping import Verb
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq merge 1.calib 2.calib -o all.calib")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .calib file to be written.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@guarded
def merge(records: tuple[Path, ...], output: Path, *, quiet: bool) -> None:
    """Put .calib files of all shards together, in any order."""
    from ptq.api import merge as run_merge
    from ptq.delivery.deliver import require_writable
    from ptq.display import Display

    require_writable(output, [], ("",))
    whole = run_merge(records)
    whole.save(output)
    with ending(0):
        Display(quiet=quiet).line(f"{whole.described} -> {output}")
