"""The verb `diff`: where the error of a quantized model comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ptq.cli.helping import Verb, options
from ptq.cli.options import IMAGE_OPTIONS, images_of
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example="ptq diff model.onnx model.int8.onnx --data calib.npz")
@click.argument("reference", metavar="FLOAT", type=click.Path(path_type=Path))
@click.argument("model", metavar="QUANT", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data to compare on, as for quantize.")
@click.option("--samples", type=click.IntRange(1), default=64, show_default=True, help="Most samples read.")
@options(IMAGE_OPTIONS)
@click.option("--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the models need.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@guarded
def diff(reference: Path, model: Path, **given: Any) -> None:
    """Say which layers of QUANT cost it accuracy, and what mends them.

    Every layer's SQNR and cosine; its share of the final error, alone and by what its restoring to float saves, on the
    first 16 samples; the worst samples; findings with a command each. The exit code is 0 whatever is found.

    \b
    --json gives: sqnr_db, cosine, num_samples, num_shared, float_sqnr_db (how
    near QUANT comes to FLOAT with every layer restored), notes, worst first:
      layers:   name, op_type, sqnr_db, cosine, alone, restored, share,
                of_weights, of_grids (its parts where they were told
                apart), has_grids, readers, module,
                is_new
      findings: kind, layer, share, alone, restored, text, option, command
      worst:    index, sqnr_db
    alone, restored and share are fractions of the final error, null where
    nothing can be switched.
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from ptq.api import diff as run_diff
    from ptq.display import Display

    display = Display(quiet=given["quiet"] or given["as_json"])
    with display.steps() as progress:
        found = run_diff(
            reference,
            model,
            given["data"],
            limit=given["samples"],
            custom_ops=given["custom_ops"],
            images=images_of(given),
            progress=progress,
        )
    with ending(0):
        if given["as_json"]:
            click.echo(json.dumps(asdict(found), sort_keys=True))
        display.diff(found)
