"""The command line: options in, one call, a verdict out. No logic of its own; a verb is one file plus one line.

Exit codes: 0 done, 1 a goal was missed, 2 the input or the command line is at fault (one line on stderr),
130 interrupted, 143 terminated.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import click

from ptq.cli.bench import bench
from ptq.cli.calibrate import calibrate
from ptq.cli.completion import completion
from ptq.cli.diff import diff
from ptq.cli.export import export
from ptq.cli.inspect import inspect
from ptq.cli.merge import merge
from ptq.cli.methods import methods
from ptq.cli.quantize import quantize
from ptq.cli.report import report
from ptq.cli.running import OneLineErrors
from ptq.cli.squeeze import squeeze
from ptq.cli.validate import validate
from ptq.files.heap import give_back_memory

EXAMPLE = "\b\nExample:\n  ptq quantize model.onnx --data calib.npz -o model.int8.onnx\n  ptq COMMAND --help"


def _cmakedir(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    """Print the folder of ptq.cmake, for `execute_process` in a CMakeLists.txt."""
    if asked:
        click.echo((Path(__file__).parents[1] / "cmake").as_posix())
        context.exit()


def _version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    """Print the version: the first line is for scripts, the second for people."""
    if asked:
        from ptq.runtime.native import native_kernels, native_lack

        why = native_lack()
        click.echo(f"ptq, version {metadata.version('ptq')}")
        click.echo(f"operator library: none; {why}" if why else f"operator library: {native_kernels()} kernels")
        context.exit()


@click.group(cls=OneLineErrors, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and which operator library runs.",
)
@click.option(
    "--cmakedir", is_flag=True, is_eager=True, expose_value=False, callback=_cmakedir, help="Where ptq.cmake lies."
)
def main() -> None:
    """Quantize ONNX models for onnxruntime, and prove that they are still right."""
    give_back_memory()


for _verb in (
    quantize, validate, diff, report, inspect, bench, export, squeeze, calibrate, merge, methods, completion,
):  # fmt: skip
    main.add_command(_verb)
