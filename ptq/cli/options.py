"""Options that several verbs share, and their values: from text to what functions take."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq.cli.helping import options, propose_observers, propose_targets, propose_weight_methods
from ptq.core.errors import RecipeError

if TYPE_CHECKING:
    from ptq.analysis.compare import Metric
    from ptq.calibration.executor import Executor
    from ptq.calibration.images import ImageOptions
    from ptq.recipe import Goals, Recipe


MAX_MACS = "Products left, 80% or 0.8: channels leave, layers behind are refitted; with a goal only."
DATA_OPTIONS = options(
    click.option(
        "--data",
        type=click.Path(),
        help="Calibration set, path or URL: .npz, .npy, .jsonl, .parquet or an image folder.",
    ),
    click.option("--eval-data", type=click.Path(), help="Data to verify on; default: every eighth calibration sample."),
    click.option("--random-data", is_flag=True, help="Calibrate on random data: a smoke test, marked in the card."),
    click.option("--samples", type=click.IntRange(1), help="Most samples read (default 512)."),
    click.option("--skip-bad-samples", is_flag=True, help="Leave out unreadable images, NaN and infinity, and say so."),
    click.option("--seed", type=int, help="Seed of random data (default 0)."),
    title="Data and result",
)
RECIPE_OPTIONS = options(
    click.option(
        "--recipe", "recipe_path", type=click.Path(path_type=Path), help="Recipe (TOML); options win over it."
    ),
    click.option(
        "--target",
        shell_complete=propose_targets,
        help="cpu-x86, cpu-arm, portable, or native (operators of our own); default: this machine.",
    ),
    click.option(
        "--activations",
        shell_complete=propose_observers,
        help="Observer of activation ranges, see `ptq methods` (default auto).",
    ),
    click.option(
        "--weights",
        shell_complete=propose_weight_methods,
        help="Weight method, see `ptq methods` (default: gptq for static integers on --data, else rtn).",
    ),
    click.option("--fast", is_flag=True, help="Round weights: seconds instead of minutes, a little less accurate."),
    click.option("--bits", type=click.IntRange(2, 8), help="Word length of weights (default 8)."),
    click.option(
        "--granularity",
        type=click.Choice(["per-channel", "per-tensor", *(f"block-{size}" for size in (16, 32, 64, 128, 256))]),
        metavar="NAME",
        help="Which weights share a scale: per-channel, per-tensor, or block-16 to block-256 with --weight-only.",
    ),
    click.option(
        "--split",
        type=click.Choice(["auto", "never", "center", "whole"]),
        help="Weights as coarse + fine sums: where a kernel's center is far wider than the rest (auto), nowhere, "
        "at any kernel's center, everywhere.",
    ),
    click.option(
        "--extra-macs", help="Budget of extra points in the features that need them most, for example 5% or 0.05."
    ),
    click.option("--weight-only", is_flag=True, help="Leave activations in float."),
    click.option("--activation-bits", type=click.IntRange(2, 8), help="Word length of activations (default 8)."),
    click.option("--first-last-bits", type=click.IntRange(2, 8), help="Word length in the first and last layers."),
    click.option(
        "--layer",
        "rules",
        multiple=True,
        help="Own settings of some layers, PATTERN:KEY=VALUE,..: bits, method, granularity, split, skip, float_kernel.",
    ),
    click.option("--no-bias-correction", is_flag=True, help="Leave biases as they are."),
    click.option(
        "--optimize",
        type=click.Choice(["accuracy", "latency", "integers"]),
        help="What is faster in float stays float: by stated times (accuracy, default), as measured (latency), none.",
    ),
    click.option("--latency-batch", type=click.IntRange(1), help="Samples at once that times are taken for."),
    click.option(
        "--squeeze",
        metavar="WHICH",
        help="Channels that leave: never, proved, auto (those that carry nothing), a share of a step, or as many as a "
        "goal allows, such as 'top1 drop <= 0.5'.",
    ),
    click.option("--max-macs", metavar="SHARE", help=MAX_MACS),
    click.option("--no-equalize", is_flag=True, help="Leave the widths of channels as they are."),
    click.option("--no-other-words", is_flag=True, help="Weights see no texts but those of the calibration set."),
    click.option(
        "--exclude", multiple=True, help="Leave nodes in float: name, module, operator type, glob, or re:REGEX."
    ),
    click.option("--only", multiple=True, help="Leave all other nodes in float; named likewise."),
    title="Method",
)
ENGINE_OPTIONS = options(
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Where calibration runs."),
    click.option("--address", help="Ray: address of a running cluster; default: one of this machine's own."),
    click.option("--workers", type=click.IntRange(1), help="Parts of the calibration set at once (default: cores)."),
    title="Machines",
)
IMAGE_OPTIONS = options(
    click.option("--resize", help="Shorter side, or HEIGHTxWIDTH."),
    click.option("--crop", help="Center crop, SIDE or HEIGHTxWIDTH."),
    click.option("--mean", help="Mean per channel after scaling, comma separated."),
    click.option("--std", help="Standard deviation per channel, comma separated."),
    click.option("--scale", type=float, help="Factor on pixels 0..255 (default 1/255)."),
    click.option("--channels", type=click.Choice(["rgb", "bgr", "gray"]), help="Channel order."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Axis order."),
    title="Images",
)
AIM_OPTIONS = options(
    click.option(
        "--goal",
        "goals",
        multiple=True,
        help="Search for the smallest model with 'sqnr >= 30', 'agreement >= 0.99', 'top1 drop <= 0.5' (points), ...",
    ),
    click.option("--save-recipe", type=click.Path(path_type=Path), help="Write the recipe that makes it in one go."),
    title="Goals",
)
GOAL_OPTIONS = options(
    click.option("--min-sqnr-db", type=float, help="SQNR of the worst output, dB."),
    click.option("--min-agreement", type=click.FloatRange(0, 1), help="Share of equal decisions."),
    click.option(
        "--max-drop", type=click.FloatRange(0), help="Largest loss of top-1 (or the metric), 0.01 is a point."
    ),
    click.option("--max-latency-ratio", type=click.FloatRange(0), help="Quantized over float latency."),
    click.option(
        "--accept-poor", is_flag=True, help="Keep a model far from float as it comes out: no repair, no exit code 1."
    ),
    click.option("--metric", help="Own metric as package.module:function over (outputs, labels)."),
    title="Goals",
)
REPORT_OPTIONS = options(
    click.option("--report", "page", type=click.Path(path_type=Path), help="Also write a report (HTML) there."),
    click.option("--front-matter", is_flag=True, help="Begin the .card.md as Hugging Face's model cards do."),
    title="Report",
)
SHARED_OPTIONS = options(
    click.option(
        "--custom-ops", multiple=True, type=click.Path(path_type=Path), help="Operator library the model needs."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors and missed goals only."),
)


def require_data(given: dict[str, Any]) -> None:
    """Refuse to calibrate on nothing, or on two things."""
    if bool(given["data"]) == given["random_data"]:
        found = "both" if given["data"] else "neither"
        raise RecipeError(
            f"expected either --data or --random-data, found {found}; give a calibration set with --data PATH"
        )


def engine_of(given: dict[str, Any]) -> Executor:
    """Return the executor that runs the calibration set."""
    from ptq.calibration.executor import Ray, Threads

    if given["engine"] == "ray":
        return Ray(given["address"], given["workers"])
    if given["address"]:
        raise RecipeError("--address is for --engine ray")
    return Threads(given["workers"])


def recipe_of(given: dict[str, Any]) -> Recipe:
    """Read the recipe file and put the command line's options on top."""
    from ptq.calibration.observers import Observer
    from ptq.core.family import member_named
    from ptq.recipe import Recipe
    from ptq.recipe.text import parse_rule
    from ptq.recipe.toml import load_recipe
    from ptq.weights import Rtn, WeightMethod

    recipe = load_recipe(given["recipe_path"]) if given["recipe_path"] else Recipe()
    weights = {key: given[key] for key in ("bits", "first_last_bits", "split", "granularity") if given[key] is not None}
    if given["weights"]:
        weights["method"] = member_named(WeightMethod, given["weights"])
    if given["fast"]:
        if given["weights"]:
            raise RecipeError("--fast rounds weights, --weights names another way; leave one of them")
        weights["method"] = Rtn()
    if given["extra_macs"]:
        weights["extra_macs"] = share_of(given["extra_macs"], "--extra-macs")
    if given["no_bias_correction"]:
        weights["bias_correction"] = False
    if given["activations"]:
        recipe = replace(recipe, activations=member_named(Observer, given["activations"]))
    names = ("target", "samples", "seed", "activation_bits", "optimize", "latency_batch", "squeeze")
    plain: dict[str, Any] = {key: given[key] for key in names if given[key] is not None}
    flags = {
        "weight_only": True,
        "skip_bad_samples": True,
        "no_equalize": False,
        "no_other_words": False,
        "goals": True,
        "accept_poor": True,
    }
    fields = {"no_equalize": "equalize", "no_other_words": "other_words", "goals": "search"}
    plain |= _channels(given)
    plain |= {fields.get(name, name): value for name, value in flags.items() if given.get(name)}
    return replace(
        recipe,
        weights=replace(recipe.weights, **weights),
        layers=recipe.layers + tuple(parse_rule(text) for text in given["rules"]),
        exclude=recipe.exclude + given["exclude"],
        only=recipe.only + given["only"],
        goals=goals_of(given, recipe.goals),
        **plain,
    )


def _channels(given: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's settings of channels that carry something."""
    sought: dict[str, Any] = {"squeeze": "fewest"} if is_goal(given["squeeze"]) else {}
    return sought | ({"max_macs": share_of(given["max_macs"], "--max-macs")} if given["max_macs"] else {})


def is_goal(text: str | None) -> bool:
    """Whether an option's text says how near to float is near enough, rather than how much is done."""
    return text is not None and ("<" in text or ">" in text)


def goals_of(given: dict[str, Any], base: Goals | None = None) -> Goals:
    """Put the command line's goals on top of a recipe's."""
    from ptq.recipe import Goals
    from ptq.recipe.text import parse_goal

    names = ("min_sqnr_db", "min_agreement", "max_drop", "max_latency_ratio")
    texts = [(text, "--goal") for text in given.get("goals") or ()]
    texts += [(given["squeeze"], "--squeeze")] if is_goal(given.get("squeeze")) else []
    sought = {name: value for text, option in texts for name, value in parse_goal(text, option).items()}
    judged = {name: given[name] for name in names if given.get(name) is not None}
    return replace(base or Goals(), **sought, **judged)


def images_of(given: dict[str, Any]) -> ImageOptions | None:
    """Return how images are read; None if nothing was said about them."""
    from ptq.calibration.images import ImageOptions

    chosen: dict[str, Any] = {key: given[key] for key in ("scale", "channels", "layout") if given[key] is not None}
    for key in ("resize", "crop"):
        if given[key]:
            chosen[key] = _extent(given[key], f"--{key}")
    for key in ("mean", "std"):
        if given[key]:
            chosen[key] = _numbers(given[key], f"--{key}")
    return ImageOptions(**chosen) if chosen else None


def share_of(text: str, option: str) -> float:
    """Read a share such as 0.05 or 5%, of an option."""
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


def metric_of(text: str | None) -> tuple[str, Metric] | None:
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
