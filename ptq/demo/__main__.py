"""`make demo`: the main job on a real model and real images, as a user would run it, down to the verdict."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import click

from ptq.cli import main
from ptq.demo.data import MODEL, load


def demo() -> None:
    """Write calibration and evaluation data, then quantize and validate through the command line."""
    _, calibration, evaluation = load()
    with tempfile.TemporaryDirectory(prefix="ptq-demo-") as name:
        folder = Path(name)
        calibration.save(folder / "calib.npz")
        evaluation.save(folder / "eval.npz")
        output = folder / "digits.int8.onnx"
        goals = ["--min-agreement", "0.99", "--max-drop", "0.005"]
        data = ["--data", str(folder / "calib.npz"), "--eval-data", str(folder / "eval.npz")]
        _run("quantize", str(MODEL), *data, *goals, "--fast", "-o", str(output))
        _run("validate", str(MODEL), str(output), "--data", str(folder / "eval.npz"), *goals)


def _run(*arguments: str) -> None:
    """Show a command and run it; a missed goal or an error ends the demo with its exit code."""
    click.secho(f"$ ptq {shlex.join(arguments)}", bold=True)
    try:
        main(list(arguments), prog_name="ptq")
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    demo()
