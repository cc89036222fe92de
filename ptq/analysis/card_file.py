"""Cards and measurements read back from files, which somebody else may have written, or broken."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cattrs.errors import BaseValidationError

from ptq.analysis.compare import Accuracy
from ptq.analysis.kernels import Kernels
from ptq.analysis.metrics import OutputMetrics
from ptq.analysis.report import SCHEMA, Attempt, DataFacts, FileFacts, TimedPlan
from ptq.analysis.verdict import Finding
from ptq.core.distribution import Distribution
from ptq.core.errors import InputError
from ptq.core.layer_row import LayerRow
from ptq.core.strict import explained, strict_converter
from ptq.recipe import Recipe
from ptq.recipe.toml import recipe_from

MAX_BYTES = 64 * 2**20
"""Most bytes of a card: 100,000 layers."""

LARGEST = 2**63
"""Limit that integers of a card stay below."""


@dataclass(frozen=True)
class Judged:
    """Verdict of a run.

    Attributes:
        passed: Whether every goal was met; without one, whether the default floor was.
        findings: Missed goals and warnings.
        word: The verdict in a word or two; that of a card without one is empty.
        floor: How the worst output stands against the default floor.
    """

    passed: bool
    findings: tuple[Finding, ...]
    word: str = ""
    floor: str = ""


@dataclass(frozen=True)
class Figures:
    """Closeness of the outputs to the float model's.

    Attributes:
        outputs: A row per output.
        labelled: Figures on labelled data.
    """

    outputs: tuple[OutputMetrics, ...]
    labelled: tuple[Accuracy, ...]


@dataclass(frozen=True)
class Aimed:
    """Deployment target of a quantization, and its demands.

    Attributes:
        target: Name of the deployment target.
        why: What it asks for.
    """

    target: str
    why: str


@dataclass(frozen=True)
class Spreads:
    """Distributions of weights and activations.

    Attributes:
        activations: First value on each grid -> what was seen.
        weights: Layer -> its weights.
        omitted: How many of each kind a card leaves out.
    """

    activations: Mapping[str, Distribution]
    weights: Mapping[str, Distribution]
    omitted: Mapping[str, int]


@dataclass(frozen=True)
class Card:
    """A card as `QuantReport.card` writes it; keys that are not used here are not looked at.

    Attributes:
        verdict: Whether the goals were met.
        float_model: What came in.
        quantized_model: What went out.
        data: Calibration and verification data.
        quantization: For what.
        accuracy: How close the outputs are.
        storage: Bytes of the quantized model by kind.
        kernels: What onnxruntime runs.
        layers: A row per quantized layer.
        spreads: How weights and activations lie.
        left_float: Node -> why it stays in float.
        notes: What preparation changed.
        recipe: Every decision; read by itself.
        versions: What it was made with.
        modules: Node -> the module that it was exported from.
    """

    verdict: Judged
    float_model: FileFacts
    quantized_model: FileFacts
    data: DataFacts
    quantization: Aimed
    accuracy: Figures
    storage: Mapping[str, int]
    kernels: Kernels
    layers: tuple[LayerRow, ...]
    spreads: Spreads
    left_float: Mapping[str, str]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    recipe: Recipe
    modules: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timed:
    """Latency of the float and of the quantized model.

    Attributes:
        reference_ms: Float model, milliseconds; 0 if too large to be timed.
        value_ms: Quantized model.
        ratio: Quantized over float.
        num_rounds: Interleaved rounds.
        batch: Leading extent of the first input.
        threads: Inside one operator.
    """

    reference_ms: float
    value_ms: float
    ratio: float
    num_rounds: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Operator:
    """Time of one kind of operator in a profile.

    Attributes:
        nodes: How many.
        ms: Milliseconds per inference, all of them.
    """

    nodes: int
    ms: float


@dataclass(frozen=True)
class Host:
    """Machine that measurements were taken on.

    Attributes:
        machine: Its architecture.
        system: Its operating system.
        cores: How many; None if unknown.
        native_kernels: Vector unit of the operator library.
    """

    machine: str
    system: str
    cores: int | None
    native_kernels: str | None = None


@dataclass(frozen=True)
class BenchFile:
    """Measurements as `QuantReport.bench` writes them.

    Attributes:
        latency: Of both models.
        seconds: What the run took.
        peak_rss_mb: Largest resident memory, MiB.
        host: Where.
        findings: Those that rest on a time.
        operators: `float` and `quantized` -> operator -> its time; empty if it was not measured.
        command: The command line.
        quantized_sha256: Hash of the model that was measured.
        plans: Ways to run the model that were timed.
        tries: Recipes that were tried to meet a goal.
    """

    latency: Timed
    seconds: float
    peak_rss_mb: float
    host: Host
    findings: tuple[Finding, ...] = ()
    operators: Mapping[str, Mapping[str, Operator]] = field(default_factory=dict)
    command: str = ""
    quantized_sha256: str = ""
    plans: tuple[TimedPlan, ...] = ()
    tries: tuple[Attempt, ...] = ()


def read_card(data: bytes, where: str) -> Card:
    """Read a card from its JSON.

    Args:
        data: Contents of a .card.json.
        where: What messages call it.

    Raises:
        InputError: It is no card, or something in it is missing, of the wrong type or not finite.
        RecipeError: Its recipe is not one.
    """
    table = _table(data, where)
    if table.get("schema") != SCHEMA:
        found = table.get("schema", "none")
        raise InputError(f"{where}: no card of this version: its schema is {found!r:.80}, expected {SCHEMA!r}")
    recipe = table.pop("recipe", None)
    if not isinstance(recipe, dict):
        raise InputError(f"{where}: the card has no recipe; expected a table")
    known = recipe_from(recipe, f"{where}: recipe")
    converter = strict_converter(forbid_extra_keys=False)
    converter.register_structure_hook(Recipe, lambda value, _: value)
    try:
        return converter.structure({**table, "recipe": known}, Card)
    except BaseValidationError as error:
        raise InputError(explained(error, where)) from error


def read_bench(data: bytes, where: str) -> BenchFile:
    """Read measurements from their JSON.

    Args:
        data: Contents of a .bench.json.
        where: What messages call it.

    Raises:
        InputError: They are none.
    """
    try:
        return strict_converter(forbid_extra_keys=False).structure(_table(data, where), BenchFile)
    except BaseValidationError as error:
        raise InputError(explained(error, where)) from error


def contents(path: Path) -> bytes:
    """Return the bytes of the file of a card or of its measurements.

    Raises:
        InputError: It cannot be read, or is too large.
    """
    try:
        entry = path.stat()
        if not stat.S_ISREG(entry.st_mode) or entry.st_size > MAX_BYTES:
            raise InputError(f"{path}: cannot read it: expected a regular file of at most {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}") from error


def _table(data: bytes, where: str) -> dict[str, Any]:
    try:
        table = json.loads(data.decode(), parse_float=_finite, parse_int=_small, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON with finite numbers: {error!s:.200}") from error
    if not isinstance(table, dict):
        raise InputError(f"{where}: no card: expected a table, found {type(table).__name__}")
    return table


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refuse(text)


def _small(text: str) -> int:
    return int(text) if len(text) < 30 and abs(int(text)) < LARGEST else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"found {text[:40]}")
