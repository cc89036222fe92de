"""The command line: options in, one call, a verdict out. No logic of its own; a verb is one file plus one line.

Exit codes: 0 done, 1 a goal was missed, 2 the input or the command line is at fault (one line on stderr),
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import click

from ptq.cli.bench import bench
from ptq.cli.completion import completion
from ptq.cli.export import export
from ptq.cli.inspect import inspect
from ptq.cli.methods import methods
from ptq.cli.quantize import quantize
from ptq.cli.running import OneLineErrors
from ptq.cli.validate import validate

EXAMPLE = "\b\nExample:\n  ptq quantize model.onnx --data calib.npz -o model.int8.onnx\n  ptq COMMAND --help"


@click.group(cls=OneLineErrors, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ptq")
def main() -> None:
    """Quantize ONNX models for onnxruntime, and prove that they are still right."""


for _verb in (quantize, validate, inspect, bench, export, methods, completion):
    main.add_command(_verb)
