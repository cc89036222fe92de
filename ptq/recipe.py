"""One run as a value: frozen dataclasses, and TOML at the edge."""

from __future__ import annotations

import inspect
import json
import math
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import cattrs
from cattrs.errors import ClassValidationError

from ptq.calibration.observers import Auto, Dynamic, Observer
from ptq.core.errors import RecipeError
from ptq.core.problem import Needs
from ptq.core.spec import Granularity, PerAxis, PerBlock, PerTensor
from ptq.core.strict import explained, strict_converter
from ptq.splitting import Split
from ptq.target import TARGETS
from ptq.weights import Rtn, WeightMethod

GranularityName = Literal["per-tensor", "per-channel", "block-16", "block-32", "block-64", "block-128", "block-256"]


MAX_BYTES = 2**20
"""Of a recipe file."""


Optimize = Literal["accuracy", "latency"]
MOST_SAMPLES = 10**12
MOST_BATCH = 65536


def _or_8(bits: int | None) -> int:
    return 8 if bits is None else bits


@dataclass(frozen=True)
class Weights:
    """How weights become integers.

    Attributes:
        method: The weight method.
        bits: Word length, 2 to 8. Below 8 the codes use less of their storage.
        granularity: Which weights share a scale: a tensor, an output feature, or a block of 16 to 256 of its inputs.
            (Blocks are for products of weight-only and dynamic models: with static activations no runtime has a kernel
            for them; other layers of such models share them per channel.)
        bias_correction: Shift biases by the mean error that the integers cause.
        split: Coarse & fine splitting: weights below 8 bits that become sums of two points. `auto` tries it where the
            centre tap of a kernel is far wider than the rest and keeps it where the layer's output gains 3 dB;
            `center` tries it in every kernel, `whole` for all weights; kept wherever anything is gained.
        extra_macs: Multipoint: extra points, spent on the output features whose errors cost the network's output the
            most, as a share of all products (0.05 is 5 %).
        first_last_bits: Word length in layers with no other before them, or none behind; None treats them like all.
    """

    method: WeightMethod = field(default_factory=Rtn)
    bits: int = 8
    granularity: GranularityName = "per-channel"
    bias_correction: bool = True
    split: Split = "auto"
    extra_macs: float = 0.0
    first_last_bits: int | None = None

    @property
    def layout(self) -> Granularity:
        """The granularity as a type, on the matrix [out, in]."""
        if self.granularity.startswith("block-"):
            return PerBlock(1, int(self.granularity.removeprefix("block-")))
        return PerTensor() if self.granularity == "per-tensor" else PerAxis(0)


@dataclass(frozen=True)
class LayerRule:
    """What some layers do differently. What is None stays as `Weights` says; later rules win.

    Attributes:
        match: Output name, node name, operator type, glob, or `re:` and a pattern.
        method: The weight method.
        bits: Word length, 2 to 8.
        granularity: Which weights share a scale.
        split: Coarse & fine splitting.
        skip: Leave the layer in float.
    """

    match: str
    method: WeightMethod | None = None
    bits: int | None = None
    granularity: GranularityName | None = None
    split: Split | None = None
    skip: bool = False

    def over(self, weights: Weights) -> Weights:
        """The weights' settings with this rule on top."""
        names = ("method", "bits", "granularity", "split")
        return replace(weights, **{name: getattr(self, name) for name in names if getattr(self, name) is not None})


@dataclass(frozen=True)
class Goals:
    """What the quantized model has to reach; None means no goal.

    Attributes:
        min_sqnr_db: Signal to quantization noise of the worst output, dB.
        min_agreement: Share of equal decisions, 0 to 1.
        max_drop: Largest loss of top-1 accuracy or of the user's metric, as a fraction (0.01 is one point).
        max_latency_ratio: Quantized over float latency.
    """

    min_sqnr_db: float | None = None
    min_agreement: float | None = None
    max_drop: float | None = None
    max_latency_ratio: float | None = None

    def __post_init__(self) -> None:
        tops = {"min_sqnr_db": math.inf, "min_agreement": 1.0, "max_drop": math.inf, "max_latency_ratio": math.inf}
        for name, top in tops.items():
            goal, low = getattr(self, name), -math.inf if name == "min_sqnr_db" else 0.0
            if goal is not None and not (math.isfinite(goal) and low <= goal <= top):
                expected = "a finite number" if name == "min_sqnr_db" else "0 to 1" if top == 1 else "at least 0"
                raise RecipeError(f"goals.{name} is {goal}; expected {expected}")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, besides model and data.

    Attributes:
        target: Deployment target; None takes this machine's.
        activations: Observer that chooses activation ranges.
        weights: How weights become integers.
        activation_bits: Word length of activations, 2 to 8. Below 8 there are no kernels: the ranges are clipped inside
            8-bit codes, for study.
        weight_only: Leave activations in float: smaller files, decoded when the session opens, at float's speed.
        equalize: Even out the channels of activations within the weights around them, where that was seen to help:
            cross-layer equalisation of convolutions, smoothing and outlier channels of products, and weights that meet
            the largest activations where only weights are rounded.
        optimize: `latency` leaves in float what is faster there on this machine, as measured; `accuracy` does not.
        latency_batch: Samples at once that latency is measured for.
        other_words: Let methods that look at the inputs of weights also see copies of the samples in which half of the
            tokens are others of the vocabulary.
        layers: What some layers do differently.
        exclude: Nodes left in float: output names, node names, operator types, globs, or `re:` and a pattern.
        samples: Most samples read from the calibration set.
        skip_bad_samples: Leave out images that cannot be read and samples with NaN or infinity, and say so.
        min_input_sqnr_db: A layer whose input keeps less than this on its grid stays float. 23 dB is where a layer
            starts to dominate the error of a transformer; convolutional networks rarely come near.
        goals: What has to be reached.
        search: Give layers more bits, or leave them in float, until the goals are met.
        seed: Seed of everything random.
    """

    target: str | None = None
    activations: Observer = field(default_factory=Auto)
    weights: Weights = field(default_factory=Weights)
    activation_bits: int = 8
    weight_only: bool = False
    equalize: bool = True
    optimize: Optimize = "accuracy"
    latency_batch: int = 1
    other_words: bool = True
    layers: tuple[LayerRule, ...] = ()
    exclude: tuple[str, ...] = ()
    samples: int = 512
    skip_bad_samples: bool = False
    min_input_sqnr_db: float = 23.0
    goals: Goals = field(default_factory=Goals)
    search: bool = False
    seed: int = 0

    @property
    def is_dynamic(self) -> bool:
        """Whether ranges of activations are taken while the model runs."""
        return isinstance(self.activations, Dynamic) and not self.weight_only

    @property
    def has_grids(self) -> bool:
        """Whether activations have ranges that are chosen beforehand."""
        return not self.weight_only and not self.is_dynamic

    @property
    def has_small_weights(self) -> bool:
        """Whether any weight is shorter than a byte."""
        own = [self.weights.bits, self.weights.first_last_bits, *(rule.bits for rule in self.layers)]
        return any(bits is not None and bits < 8 for bits in own)

    def __post_init__(self) -> None:
        names = [target.name for target in TARGETS]
        if self.target is not None and self.target not in names:
            raise RecipeError(f"target is {self.target!r}; expected one of {', '.join(names)}")
        lengths = {"weights.bits": self.weights.bits, "activation_bits": self.activation_bits}
        lengths |= {"weights.first_last_bits": _or_8(self.weights.first_last_bits)}
        lengths |= {f"layers: bits of {rule.match!r:.80}": _or_8(rule.bits) for rule in self.layers}
        for key, bits in lengths.items():
            if bits not in range(2, 9):
                raise RecipeError(f"{key} is {bits}; expected 2 to 8")
        self._check_extra_macs()
        self._check_blocks()
        self._check_dynamic()
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise RecipeError(f"samples is {self.samples}; expected 1 to {MOST_SAMPLES}")
        if not 1 <= self.latency_batch <= MOST_BATCH:
            raise RecipeError(f"latency_batch is {self.latency_batch}; expected 1 to {MOST_BATCH}")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}; expected at least 0")
        if not math.isfinite(self.min_input_sqnr_db):
            raise RecipeError(f"min_input_sqnr_db is {self.min_input_sqnr_db}; expected a finite number")

    @property
    def has_blocks(self) -> bool:
        """Whether any weight has scales per block of inputs."""
        own = [self.weights.granularity, *(rule.granularity for rule in self.layers)]
        return any(name is not None and name.startswith("block-") for name in own)

    def _check_blocks(self) -> None:
        if self.has_blocks and self.has_grids:
            raise RecipeError(
                "scales per block are for weight-only and dynamic models; add --weight-only or --activations dynamic, "
                "or take per-channel"
            )
        if self.has_blocks and self.weights.extra_macs:
            raise RecipeError("extra_macs and scales per block do not go together; leave one of them")

    def _check_dynamic(self) -> None:
        if self.is_dynamic and self.activation_bits != 8:
            raise RecipeError(f"activation_bits is {self.activation_bits}; dynamic activations have 8")

    def _check_extra_macs(self) -> None:
        share, method = self.weights.extra_macs, self.weights.method
        if not 0 <= share <= 10:
            raise RecipeError(f"extra_macs is {share}; expected a share from 0 to 10, for example 0.05")
        if share and self.weights.bits > 7:
            raise RecipeError("extra_macs adds points to weights of less than 8 bits; give --bits 2 to 7, or leave it")
        if share and method.needs is not Needs.GRAM:
            raise RecipeError(
                "extra_macs is spent by output error, which rtn does not see; expected gptq, gpfq, qronos"
            )


GOAL = re.compile(r"(?:top-?1 +|metric +)?(sqnr|agreement|drop|latency) *(>=|<=) *([\d.]+) *(%|dB)?")
GOALS = {"sqnr": "min_sqnr_db", "agreement": "min_agreement", "drop": "max_drop", "latency": "max_latency_ratio"}


def parse_goal(text: str) -> dict[str, float]:
    """A goal as the command line takes it, as a field of `Goals`.

    Args:
        text: `sqnr >= 30`, `agreement >= 0.99`, `top1 drop <= 0.5` (points, or `%`), `latency <= 0.5` (over float).

    Raises:
        RecipeError: It is something else.

    Example:
        >>> parse_goal("top1 drop <= 0.5")
        {'max_drop': 0.005}
    """
    found = re.fullmatch(
        r"\s*(?:top-?1\s+|metric\s+)?(sqnr|agreement|drop|latency)\s*(>=|<=)\s*([\d.]+)\s*(%|dB)?\s*", text
    )
    number = None if found is None else _float_or_none(found[3])
    wanted = {"sqnr": ">=", "agreement": ">=", "drop": "<=", "latency": "<="}
    units = {"sqnr": (None, "dB"), "agreement": (None, "%"), "drop": (None, "%"), "latency": (None, "%")}
    if found is None or number is None or found[2] != wanted[found[1]] or found[4] not in units[found[1]]:
        raise RecipeError(
            f"--goal is {text!r:.80}; expected for example 'sqnr >= 30', 'agreement >= 0.99', 'top1 drop <= 0.5' "
            "(points) or 'latency <= 0.5'"
        )
    points = found[1] == "drop" or found[4] == "%"
    return {GOALS[found[1]]: number / 100 if points else number}


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def members(union: Any) -> tuple[type, ...]:
    """The classes of a family; a family of one is no union yet."""
    return get_args(union) or (union,)


def tag_of(member: type) -> str:
    """What a method is called in recipes and on the command line: its file's name."""
    return member.__module__.rsplit(".", 1)[-1]


def member_named(union: Any, tag: str) -> Any:
    """An instance of the member with that tag, with its defaults.

    Raises:
        RecipeError: No such member.
    """
    known = {tag_of(member): member for member in members(union)}
    if tag not in known:
        raise RecipeError(f"method is {tag!r}; expected one of {', '.join(known)}; see `ptq methods`")
    return known[tag]()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from TOML.

    Raises:
        RecipeError: The file is missing or not TOML, or a key is unknown or of the wrong type; names the key path.
    """
    try:
        entry = path.stat()
        if not stat.S_ISREG(entry.st_mode) or entry.st_size > MAX_BYTES:
            raise RecipeError(f"{path}: cannot read the recipe: expected a regular file of at most {MAX_BYTES} bytes")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # those of TOML and of Unicode are ValueErrors too
        raise RecipeError(f"{path}: not TOML: {error}") from error
    return recipe_from(table, str(path))


def parse_rule(text: str) -> LayerRule:
    """A layer rule as the command line takes it, for example `conv1:bits=8,method=rtn` or `re:head.*:skip`.

    Raises:
        RecipeError: A key or value is unknown, or there is none.
    """
    match, _, settings = text.rpartition(":")
    table: dict[str, Any] = {"match": match}
    for setting in settings.split(","):
        key, _, value = setting.partition("=")
        table[key.strip()] = True if key.strip() == "skip" and not value else _literal(value.strip())
    if not match or "" in table:
        raise RecipeError(f"--layer is {text!r}; expected PATTERN:KEY=VALUE,... for example conv1:bits=8,method=rtn")
    return recipe_from({"layers": [table]}, f"--layer {text!r}").layers[0]


def _literal(text: str) -> int | bool | str:
    return int(text) if text.isdecimal() and len(text) < 20 else {"true": True, "false": False}.get(text, text)


def recipe_from(table: dict[str, Any], where: str) -> Recipe:
    """Turn nested tables into a recipe; unknown keys are refused."""
    try:
        return _converter().structure(table, Recipe)
    except ClassValidationError as error:
        raise RecipeError(explained(error, where)) from error


def recipe_to(recipe: Recipe) -> dict[str, Any]:
    """A recipe as nested tables, methods tagged: what the card echoes back."""
    table: dict[str, Any] = _without_none(_converter().unstructure(recipe))
    return table


def _without_none(value: Any) -> Any:
    """TOML has no word for nothing."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list | tuple) else value


def recipe_toml(table: Mapping[str, Any]) -> str:
    """Nested tables as the TOML that `load_recipe` reads.

    Args:
        table: From `recipe_to`.
    """
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        tables = value if isinstance(value, list) else [value]
        for each in tables if value and _is_table(value) else ():
            lines += ["", f"[{key}]" if each is value else f"[[{key}]]"]
            lines += [f"{name} = {_toml(own)}" for name, own in each.items()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _toml(value: Any) -> str:
    """A value in one line; JSON writes strings, numbers and truths as TOML does, but for one character."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def describe_method(member: type) -> tuple[str, str, str]:
    """Tag, settings with defaults, and first line of the docstring."""
    settings = ", ".join(f"{f.name}={getattr(member(), f.name)!r}" for f in fields(member))
    return tag_of(member), settings, (inspect.getdoc(member) or "").split("\n")[0]


def _converter() -> cattrs.Converter:
    converter = strict_converter(forbid_extra_keys=True)
    for union in (Observer, WeightMethod):
        _register_tagged(converter, union)
    return converter


def _register_tagged(converter: cattrs.Converter, union: Any) -> None:
    """Read and write a family as a table whose `method` names the member; a bare string means its defaults."""
    known = {tag_of(member): member for member in members(union)}

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, str | dict):
            raise TypeError(f"expected the name of a method or a table with one, found {value!r:.80}")
        table = {"method": value} if isinstance(value, str) else dict(value)
        tag = table.pop("method", None)
        if not isinstance(tag, str) or tag not in known:
            raise ValueError(f"method is {tag!r}, expected one of {', '.join(known)}")
        plain = cattrs.Converter(forbid_extra_keys=True)
        return plain.structure(table, known[tag])

    def unstructure(value: Any) -> dict[str, Any] | None:
        return None if value is None else {"method": tag_of(type(value)), **asdict(value)}

    converter.register_structure_hook(union, structure)
    converter.register_structure_hook(union | None, structure)
    converter.register_unstructure_hook(union, unstructure)
    converter.register_unstructure_hook(union | None, unstructure)
    for member in known.values():
        converter.register_unstructure_hook(member, unstructure)
