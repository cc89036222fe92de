"""What a model is, and what quantization would do to it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ptq.cli.running import guarded


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the model needs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@guarded
def inspect(model: Path, custom_ops: tuple[Path, ...], as_json: bool) -> None:
    """Say what MODEL is and which of its layers would be quantized."""
    from ptq.display import Display
    from ptq.inspection import inspect_model

    facts = inspect_model(model, custom_ops)
    if as_json:
        click.echo(json.dumps(facts, sort_keys=True))
    else:
        Display(quiet=False).inspection(facts)
