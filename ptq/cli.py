"""The command line: options in, one call, a verdict out. No logic of its own.

Exit codes: 0 done, 1 a goal was missed, 2 the input or the command line is at fault (one line on stderr),
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.core.errors import PtqError, RecipeError

if TYPE_CHECKING:
    from ptq.analysis.compare import Metric
    from ptq.calibration.engine import Engine
    from ptq.calibration.images import ImageOptions
    from ptq.recipe import Goals, Recipe

GOAL_MISSED, USER_ERROR, INTERRUPTED, TERMINATED = 1, 2, 130, 143

LONGEST = 800
"""Characters of an error line."""

Command = Callable[..., None]


class Terminated(BaseException):
    """SIGTERM came: what is half done has to be cleared away."""


class OneLineErrors(click.Group):
    """A group whose usage errors look like all other errors: one line, exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and word what click refuses."""
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ptq"
            _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ptq")
def main() -> None:
    """Quantize ONNX models for onnxruntime, and prove that they are still right."""


def guarded(command: Command) -> Command:
    """Turn errors of the user into one line and exit code 2; everything else is a bug and shows itself."""

    @functools.wraps(command)
    def call(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            if threading.current_thread() is threading.main_thread():  # no other may
                signal.signal(signal.SIGTERM, _terminate)
            with warnings.catch_warnings():
                if not debug:
                    warnings.simplefilter("ignore")  # numpy's, of libraries: what matters is an error of ours
                command(*args, **kwargs)
        except (PtqError, OSError, MemoryError, KeyboardInterrupt, Terminated) as error:
            if debug and isinstance(error, Exception):
                raise
            _end(error)

    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(call)


@contextmanager
def ending(code: int) -> Iterator[None]:
    """Say the last words and exit; if nobody listens any more, the code says it all the same."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def _end(error: BaseException) -> None:
    """Say in one line what ended the command, and exit."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        interrupted = isinstance(error, KeyboardInterrupt)
        click.echo("interrupted" if interrupted else "terminated", err=True)
        sys.exit(INTERRUPTED if interrupted else TERMINATED)
    if isinstance(error, MemoryError):
        _fail("out of memory; use fewer or smaller samples, or a machine with more memory")
    if isinstance(error, OSError):
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    _fail(str(error))


def _fail(message: str) -> None:
    line = " ".join(message.split())
    line = line if len(line) < LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 3 :]}"  # the cause is last
    click.echo(f"error: {line}", err=True)
    sys.exit(USER_ERROR)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


IMAGE_OPTIONS = options(
    click.option("--resize", help="Images: shorter side, or HEIGHTxWIDTH."),
    click.option("--crop", help="Images: centre crop, SIDE or HEIGHTxWIDTH."),
    click.option("--mean", help="Images: mean per channel after scaling, comma separated."),
    click.option("--std", help="Images: standard deviation per channel, comma separated."),
    click.option("--scale", type=float, help="Images: factor on pixels 0..255 (default 1/255)."),
    click.option("--channels", type=click.Choice(["rgb", "bgr", "gray"]), help="Images: channel order."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Images: axis order."),
)
GOAL_OPTIONS = options(
    click.option("--min-sqnr-db", type=float, help="Goal: SQNR of the worst output, dB."),
    click.option("--min-agreement", type=click.FloatRange(0, 1), help="Goal: share of equal decisions."),
    click.option(
        "--max-drop", type=click.FloatRange(0), help="Goal: largest loss of top-1 (or the metric), 0.01 is a point."
    ),
    click.option("--max-latency-ratio", type=click.FloatRange(0), help="Goal: quantized over float latency."),
)
SHARED_OPTIONS = options(
    click.option(
        "--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the model needs."
    ),
    click.option("--metric", help="Own metric as package.module:function over (outputs, labels)."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors and missed goals only."),
)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where the quantized model goes.")
@click.option("--data", help="Calibration set: .npz, .npy, .jsonl, .parquet or an image folder.")
@click.option("--eval-data", help="Data to verify on; default: every eighth calibration sample.")
@click.option("--random-data", is_flag=True, help="Calibrate on random data: a smoke test, marked in the card.")
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="Recipe (TOML); options win over it.")
@click.option("--target", help="cpu-x86, cpu-arm, portable, or native (operators of our own); default: this machine.")
@click.option("--activations", help="Observer of activation ranges, see `ptq methods` (default auto).")
@click.option("--weights", help="Weight method, see `ptq methods` (default rtn).")
@click.option("--bits", type=click.IntRange(2, 8), help="Word length of weights (default 8).")
@click.option(
    "--granularity",
    type=click.Choice(["per-channel", "per-tensor", *(f"block-{size}" for size in (16, 32, 64, 128, 256))]),
    help="Which weights share a scale; blocks with --weight-only.",
)
@click.option(
    "--split",
    type=click.Choice(["auto", "never", "center", "whole"]),
    help="Weights as coarse + fine sums: where a kernel's centre is far wider than the rest (auto), nowhere, at any "
    "kernel's centre, everywhere.",
)
@click.option(
    "--extra-macs", help="Budget of extra points in the features that need them most, for example 5% or 0.05."
)
@click.option("--weight-only", is_flag=True, help="Leave activations in float.")
@click.option("--activation-bits", type=click.IntRange(2, 8), help="Word length of activations (default 8).")
@click.option("--first-last-bits", type=click.IntRange(2, 8), help="Word length in the first and last layers.")
@click.option(
    "--layer",
    "rules",
    multiple=True,
    help="Own settings of some layers, PATTERN:KEY=VALUE,... with bits, method, granularity, split or skip.",
)
@click.option("--no-bias-correction", is_flag=True, help="Leave biases as they are.")
@click.option("--no-equalize", is_flag=True, help="Leave the widths of channels as they are.")
@click.option("--exclude", multiple=True, help="Leave nodes in float: name, operator type, glob, or re:REGEX.")
@click.option("--samples", type=click.IntRange(1), help="Most samples read (default 512).")
@click.option("--skip-bad-samples", is_flag=True, help="Leave out unreadable images, NaN and infinity, and say so.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Where calibration runs.")
@click.option("--address", help="Ray: address of a running cluster; default: one of this machine's own.")
@click.option("--workers", type=click.IntRange(1), help="Parts of the calibration set at once (default: cores).")
@click.option("--seed", type=int, help="Seed of random data (default 0).")
@options(GOAL_OPTIONS, IMAGE_OPTIONS, SHARED_OPTIONS)
@guarded
def quantize(model: Path, output: Path, **given: Any) -> None:
    """Quantize MODEL with the calibration set --data and write it to --output, its card beside it."""
    from ptq.api import quantize as run_quantize
    from ptq.delivery import deliver, require_writable
    from ptq.display import Display
    from ptq.modelfile import external_files
    from ptq.pipeline import cards_of

    _require_data(given)
    data = None if given["random_data"] else given["data"]
    named = [
        model,
        *given["custom_ops"],
        *(given[name] for name in ("data", "eval_data", "recipe_path") if given[name]),
    ]
    require_writable(output, [*map(Path, named), *external_files(model)])
    display = Display(quiet=given["quiet"] or given["as_json"])
    workspace = output.with_name(f".{output.name[:80]}.partial")  # an interrupted run on a huge model goes on from here
    with display.steps() as progress:
        result = run_quantize(
            model,
            data,
            _recipe(given),
            evaluation=given["eval_data"],
            custom_ops=given["custom_ops"],
            images=_images(given),
            metric=_metric(given["metric"]),
            progress=progress,
            workspace=workspace,
            engine=_engine(given),
        )
    passed = result.report.verdict.passed
    if passed:
        result.save(output)
    else:
        deliver(output, None, cards_of(result.report, output))
    if result.workspace is not None:
        result.workspace.remove()
    with ending(0 if passed else GOAL_MISSED):
        if given["as_json"]:
            click.echo(json.dumps({**result.report.card(), "bench": result.report.bench()}, sort_keys=True))
        display.result(result.report, output)


@main.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data to compare on; labels give top-1 and top-5.")
@click.option("--samples", type=click.IntRange(1), default=1_000_000, show_default=False, help="Most samples read.")
@options(GOAL_OPTIONS, IMAGE_OPTIONS, SHARED_OPTIONS)
@guarded
def validate(reference: Path, model: Path, **given: Any) -> None:
    """Compare MODEL with REFERENCE on data: any two ONNX models with the same inputs."""
    from ptq.api import validate as run_validate
    from ptq.display import Display, validation_table

    validation = run_validate(
        reference,
        model,
        given["data"],
        goals=_goals(given),
        limit=given["samples"],
        custom_ops=given["custom_ops"],
        images=_images(given),
        metric=_metric(given["metric"]),
    )
    if given["as_json"]:
        click.echo(json.dumps(validation_table(validation), sort_keys=True))
    Display(quiet=given["quiet"] or given["as_json"]).validation(validation)
    sys.exit(0 if validation.verdict.passed else GOAL_MISSED)


@main.command()
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


@main.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", help="What to run on; default: random numbers.")
@click.option("--batch", type=click.IntRange(1), default=1, help="Samples at once (default 1).")
@click.option("--threads", type=click.IntRange(0), default=1, help="Threads inside one operator (default 1).")
@click.option("--seconds", type=click.FloatRange(0), default=5.0, help="Roughly how long to measure (default 5).")
@click.option("--no-native", is_flag=True, help="Leave the operator library out.")
@click.option("--profile", is_flag=True, help="Also say which operators the time goes to.")
@click.option("--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the models need.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@guarded
def bench(models: tuple[Path, ...], **given: Any) -> None:
    """Time MODELS side by side: interleaved, medians, the first once more as a control."""
    from ptq.analysis.bench import Setting
    from ptq.api import bench as run_bench
    from ptq.display import Display, bench_table

    setting = Setting(given["custom_ops"], given["threads"], given["seconds"])
    found, profiles = run_bench(
        models, given["data"], batch=given["batch"], setting=setting, native=not given["no_native"]
    )
    shown = profiles if given["profile"] else ()
    if given["as_json"]:
        click.echo(json.dumps(bench_table(found, shown), sort_keys=True))
    else:
        Display(quiet=False).bench(found, shown)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="ort-mobile, web, arm64, or native (a C program here).")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to be written.")
@click.option("--data", help="Samples that go along to check the other machine with; default: random numbers.")
@click.option(
    "--float",
    "float_model",
    type=click.Path(path_type=Path),
    help="For a page: the float model, to be shown beside it.",
)
@options(IMAGE_OPTIONS)
@guarded
def export(model: Path, output: Path, **given: Any) -> None:
    """Write MODEL with all that another kind of machine needs to run it and to check its outputs."""
    from ptq.api import export as run_export

    paths = run_export(
        model,
        output,
        target=given["target"],
        data=given["data"],
        float_model=given["float_model"],
        images=_images(given),
    )
    for path in paths:
        click.echo(f"{path.stat().st_size:>12,}  {path}")


@main.command()
@guarded
def methods() -> None:
    """List every observer and weight method with its settings."""
    from ptq.display import Display

    Display(quiet=False).methods()


def _require_data(given: dict[str, Any]) -> None:
    if bool(given["data"]) == given["random_data"]:
        found = "both" if given["data"] else "neither"
        raise RecipeError(
            f"expected either --data or --random-data, found {found}; give a calibration set with --data PATH"
        )


def _engine(given: dict[str, Any]) -> Engine:
    from ptq.calibration.engine import Ray, Threads

    if given["engine"] == "ray":
        return Ray(given["address"], given["workers"])
    if given["address"]:
        raise RecipeError("--address is for --engine ray")
    return Threads(given["workers"])


def _recipe(given: dict[str, Any]) -> Recipe:
    """The recipe file with the command line's options on top."""
    from ptq.calibration.observers import Observer
    from ptq.recipe import Recipe, load_recipe, member_named, parse_rule
    from ptq.weights import WeightMethod

    recipe = load_recipe(given["recipe_path"]) if given["recipe_path"] else Recipe()
    own = {key: given[key] for key in ("bits", "first_last_bits", "split", "granularity") if given[key] is not None}
    if given["weights"]:
        own["method"] = member_named(WeightMethod, given["weights"])
    if given["extra_macs"]:
        own["extra_macs"] = _share(given["extra_macs"], "--extra-macs")
    if given["no_bias_correction"]:
        own["bias_correction"] = False
    if given["activations"]:
        recipe = replace(recipe, activations=member_named(Observer, given["activations"]))
    names = ("target", "samples", "seed", "activation_bits")
    plain: dict[str, Any] = {key: given[key] for key in names if given[key] is not None}
    if given["weight_only"]:
        plain["weight_only"] = True
    if given["skip_bad_samples"]:
        plain["skip_bad_samples"] = True
    if given["no_equalize"]:
        plain["equalize"] = False
    return replace(
        recipe,
        weights=replace(recipe.weights, **own),
        layers=recipe.layers + tuple(parse_rule(text) for text in given["rules"]),
        exclude=recipe.exclude + given["exclude"],
        goals=_goals(given, recipe.goals),
        **plain,
    )


def _goals(given: dict[str, Any], base: Goals | None = None) -> Goals:
    from ptq.recipe import Goals

    names = ("min_sqnr_db", "min_agreement", "max_drop", "max_latency_ratio")
    return replace(base or Goals(), **{name: given[name] for name in names if given.get(name) is not None})


def _images(given: dict[str, Any]) -> ImageOptions | None:
    from ptq.calibration.images import ImageOptions

    chosen: dict[str, Any] = {key: given[key] for key in ("scale", "channels", "layout") if given[key] is not None}
    for key in ("resize", "crop"):
        if given[key]:
            chosen[key] = _extent(given[key], f"--{key}")
    for key in ("mean", "std"):
        if given[key]:
            chosen[key] = _numbers(given[key], f"--{key}")
    return ImageOptions(**chosen) if chosen else None


def _share(text: str, option: str) -> float:
    """A share as 0.05 or 5%."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError:
        raise RecipeError(f"{option} is {text!r}; expected a share, for example 5% or 0.05") from None


def _extent(text: str, option: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise RecipeError(f"{option} is {text!r}; expected SIDE or HEIGHTxWIDTH, for example 224 or 224x224")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RecipeError(f"{option} is {text!r}; expected numbers separated by commas") from error


def _metric(text: str | None) -> tuple[str, Metric] | None:
    """Import a user's metric; the working directory counts, as with `python -m`."""
    if text is None:
        return None
    from importlib import import_module

    module, _, name = text.partition(":")
    sys.path.insert(0, "")
    try:
        return text, getattr(import_module(module), name)
    except Exception as error:  # importing runs the user's code
        raise RecipeError(f"--metric is {text!r}; expected package.module:function ({error})") from error
    finally:
        sys.path.remove("")
