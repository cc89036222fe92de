"""The verb `calibrate`: statistics of a calibration set, kept for later or for other machines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.cli.helping import Verb, options
from ptq.cli.options import (
    DATA_OPTIONS,
    ENGINE_OPTIONS,
    IMAGE_OPTIONS,
    RECIPE_OPTIONS,
    engine_of,
    images_of,
    recipe_of,
    require_data,
)
from ptq.cli.running import ending, guarded
from ptq.core.errors import RecipeError

if TYPE_CHECKING:
    from ptq.calibration.shards import Shard


@click.command(cls=Verb, example="ptq calibrate model.onnx --data calib.npz --shard 1/8 -o 1.calib")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .calib file to be written.")
@click.option("--shard", help="Only the I-th of N shares of the set, as I/N from 1; `ptq merge` puts them together.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Merged file of the first of two rounds.")
@options(DATA_OPTIONS, RECIPE_OPTIONS, ENGINE_OPTIONS, IMAGE_OPTIONS)
@click.option("--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the model needs.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@guarded
def calibrate(model: Path, output: Path, shard: str | None, **given: Any) -> None:
    """Look at calibration data and keep what was seen.

    `ptq quantize --calibration` takes it. Give the recipe and the data that will be quantized with: statistics of
    another are refused. An interrupted run goes on where it stopped.
    """
    from ptq.api import calibrate as run_calibrate
    from ptq.calibration.remote import local_path
    from ptq.delivery.deliver import require_writable
    from ptq.delivery.workspace import Workspace
    from ptq.display import Display

    require_data(given)
    named = (local_path(str(given[name])) for name in ("data", "eval_data", "recipe_path") if given[name])
    require_writable(output, [model, *(path for path in named if path is not None)], ("",))
    display = Display(quiet=given["quiet"])
    notes = output.with_name(f".{output.name[:80]}.partial") / "calibration.calib"
    with display.steps() as progress:
        record = run_calibrate(
            model,
            None if given["random_data"] else given["data"],
            recipe_of(given),
            shard=None if shard is None else _shard(shard),
            evaluation=given["eval_data"],
            custom_ops=given["custom_ops"],
            images=images_of(given),
            progress=progress,
            notes=notes,
            engine=engine_of(given),
            calibration=given["calibration"],
        )
    record.save(output)
    Workspace(notes.parent).remove()
    with ending(0):
        display.line(f"{record.described} -> {output}")
        if record.is_first_round and shard is not None:
            done = len(record.stages)
            display.line(f"round {done}: merge all shards, then run this again with --calibration and the merged file")


def _shard(text: str) -> Shard:
    from ptq.calibration.shards import Shard

    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise RecipeError(f"--shard is {text!r}; expected I/N with 1 <= I <= N, for example 2/8")
    return Shard(int(found[1]) - 1, int(found[2]))
