"""The smallest model that meets a goal: what costs the output most gets more bits, or stays float, until it holds.

What costs nothing is tried first: a weight method that sees the data, scales per channel, the default choice of ranges.
Then each layer's part of the final error is measured once (`ptq.analysis.diff`). A bit more quarters the error of a
layer's weight and costs an eighth of a byte for each; bits go where they take away most error for their bytes. The
model of the error is a guess, the verdict is not: every recipe is run, and its miss corrects the next guess.
"""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from ptq.analysis.diff import Pair
from ptq.analysis.diff import diff as find_parts
from ptq.analysis.diff.causes import Names
from ptq.analysis.report import Attempt
from ptq.calibration.observers import Auto
from ptq.calibration.shards import CalibrationShards
from ptq.core.errors import PtqError
from ptq.core.problem import Needs
from ptq.core.progress import Progress, silent, within
from ptq.job import Job, Result
from ptq.pipeline import run
from ptq.recipe import LayerRule, Recipe
from ptq.weights import Gptq

SAMPLES = 8
"""On which each layer's part of the error is measured."""

MOST_RUNS = 14
"""After which the best that was found is taken."""

REFINED = 2
"""Runs that look for a smaller model once the goal is met."""

HALF, STRIDE = 0.5, 0.05
"""How much lower the next try aims when nothing is known, and at most: far ahead the model of the error is no help."""

WHOLE, FLOAT = 8, 9
"""Bits of a layer; one more than all of them stands for float."""

FLOAT_BITS = 32


@dataclass(frozen=True)
class Part:
    """What one layer does to the output, relative to the output's energy.

    Attributes:
        name: The layer.
        num_weights: How many weights it has.
        num_bits: Their word length.
        weight_error: Energy of the final error that comes from rounding them.
        input_error: That comes from rounding its input.
    """

    name: str
    num_weights: int
    num_bits: int
    weight_error: float
    input_error: float

    def error(self, bits: int) -> float:
        """At another word length: each bit halves the steps."""
        return 0.0 if bits == FLOAT else self.input_error + self.weight_error * 4.0 ** (self.num_bits - bits)

    def num_bytes(self, bits: int) -> float:
        """In the file."""
        return self.num_weights * (FLOAT_BITS if bits == FLOAT else bits) / 8

    def gain(self, bits: int, more: int) -> float:
        """Error taken away for every byte."""
        return (self.error(bits) - self.error(more)) / max(self.num_bytes(more) - self.num_bytes(bits), 1e-300)


def more_bits(parts: tuple[Part, ...], rest: float, target: float) -> dict[str, int]:
    """Word lengths that bring the error down at the least cost in bytes.

    Args:
        parts: The layers.
        rest: Error that comes from none of them.
        target: Energy of the error that is wanted, relative.

    Returns:
        Layer -> bits, of those that change; `FLOAT` for float. Everything in float if even that is not enough.

    Example:
        >>> parts = (Part("a", 100, 4, 0.1, 0.0), Part("b", 1000, 4, 0.01, 0.0))
        >>> more_bits(parts, 0.0, 0.02)
        {'a': 6}
    """
    bits = {part.name: part.num_bits for part in parts}
    error = rest + sum(part.error(part.num_bits) for part in parts)
    while error > target:
        moves = [(part, to) for part in parts for to in range(bits[part.name] + 1, FLOAT + 1)]
        part, to = max(moves, default=(None, 0), key=lambda move: move[0].gain(bits[move[0].name], move[1]))
        if part is None or part.gain(bits[part.name], to) <= 0:
            break
        error += part.error(to) - part.error(bits[part.name])
        bits[part.name] = to
    return {part.name: bits[part.name] for part in parts if bits[part.name] != part.num_bits}


def reach(job: Job, progress: Progress = silent) -> Result:
    """Quantize so that the recipe's goals are met, with as few bytes as can be found.

    Args:
        job: Model, data and recipe; its goals that cannot be met by more bits, like latency, are only judged.
        progress: Called with the name of each step.

    Returns:
        The smallest model that meets the goals, its report with a recipe that makes it in one go. If none does, the
        best one, whose verdict says what is missing. After an interruption, the smallest so far, if there is one.
    """
    search = _Search(replace(job, recipe=replace(job.recipe, search=False)), progress)
    try:
        search.free_of_charge()
        if search.met is None:
            search.with_more_bits()
            search.at_eight_bits()
    except KeyboardInterrupt:
        if search.met is None:
            raise
    best = search.best
    return replace(best, report=replace(best.report, tries=tuple(search.tries)))


class _Search:
    """Runs of one job with several recipes."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self._runs: dict[Recipe, Result] = {}
        self.tries: list[Attempt] = []
        self.met: Result | None = None

    @property
    def best(self) -> Result:
        """The smallest that meets the goals, or the nearest."""
        return self.met or min(self._runs.values(), key=_error)

    def free_of_charge(self) -> None:
        """Everything that costs no bytes, at once."""
        self._run("as given", self._job.recipe)
        better = _better(self._job.recipe)
        if self.met is None and better != self._job.recipe:
            self._run("better choices at no cost", better)

    def with_more_bits(self) -> None:
        """More bits for layers, or float, aiming lower until the goal is met, then a little higher again."""
        base, recipe = self.best, self._recipe_of(self.best)
        parts, rest = self._parts(base)
        fails, holds, refined = _error(base), None, 0
        aim = max(self._wanted(base) or fails * HALF, fails * STRIDE)
        while len(self.tries) < MOST_RUNS and refined <= REFINED:
            bits = more_bits(parts, rest, aim)
            asked = replace(recipe, layers=(*recipe.layers, *_rules(bits)))
            if all(bits.get(part.name) == FLOAT for part in parts):
                return  # that is the float model, and no goal met by quantizing
            if asked in self._runs:
                if holds is not None:
                    return
                fails = aim = aim * HALF  # too small a step to change anything
                continue
            found = self._run(_called(bits), asked)
            if found.report.verdict.passed:
                holds, refined = aim, refined + 1
            else:
                fails, refined = aim, refined + (holds is not None)
            wanted = self._wanted(base)
            missed = HALF if wanted is None else min(max(wanted / _error(found), STRIDE), 0.9)
            aim = aim * missed if holds is None else math.sqrt(holds * fails)

    def at_eight_bits(self) -> None:
        """Short codes have to be unpacked, which costs some bytes: in a very small model more than they save."""
        base, recipe = self.best, self._recipe_of(self.best)
        if sum(row.num_weights for row in base.report.layers) < base.delivery.num_bytes:
            layers = tuple(rule for rule in recipe.layers if rule.bits is None)
            weights = replace(recipe.weights, bits=WHOLE, first_last_bits=None)
            asked = replace(recipe, weights=weights, layers=layers)
            if asked not in self._runs:
                self._run("all at 8 bits", asked)

    def _run(self, name: str, recipe: Recipe) -> Result:
        """One try."""
        number = len(self.tries) + 1
        job = replace(self._job, recipe=recipe, shards=CalibrationShards())
        result = run(job, within(self._progress, f"try {number}, {name}"))
        self._runs[recipe] = result
        passed, size = result.report.verdict.passed, result.delivery.num_bytes
        self.tries.append(Attempt(name, result.report.proof.comparison.sqnr_db, size, passed))
        if passed and (self.met is None or size < self.met.delivery.num_bytes):
            self.met = result
        return result

    def _recipe_of(self, result: Result) -> Recipe:
        return next(recipe for recipe, each in self._runs.items() if each is result)

    def _wanted(self, base: Result) -> float | None:
        """The error that an SQNR goal allows, if that is what was missed."""
        goal = self._job.recipe.goals.min_sqnr_db
        return None if goal is None or goal <= base.report.proof.comparison.sqnr_db else 10 ** (-goal / 10)

    def _parts(self, base: Result) -> tuple[tuple[Part, ...], float]:
        """What each layer does to the output, and the rest."""
        total, shares = _error(base), self._shares(base)
        whole = max(sum(shares.values()), 1.0)
        parts = []
        for row in base.report.layers:
            own = total * shares.get(row.name, 0.0) / whole
            weight, given = 10 ** (-row.weight_sqnr_db / 10), 10 ** (-row.input_sqnr_db / 10)
            part = weight / max(weight + given, 1e-300)
            parts.append(Part(row.name, row.num_weights, row.num_bits, own * part, own * (1 - part)))
        rest = total - sum(part.weight_error + part.input_error for part in parts)
        return tuple(parts), max(rest, 0.0)

    def _shares(self, base: Result) -> dict[str, float]:
        """Layer -> share of the final error, measured; guessed from the weights where nothing can be switched."""
        samples = itertools.islice(self._job.evaluation or self._job.data, SAMPLES)
        names = Names("the float model", "the quantized model", self._job.data.description)
        found: dict[str, float] = {}
        if base.delivery.data is not None:
            with suppress(PtqError):  # of a form in which no layer can be switched
                pair = Pair(self._job.source, base.delivery.data, names, self._job.custom_ops)
                layers = find_parts(pair, samples, within(self._progress, "layers")).layers
                found = {layer.name: layer.share for layer in layers if layer.share is not None}
        if not any(found.get(row.name) for row in base.report.layers):
            errors = {row.name: 10 ** (-row.weight_sqnr_db / 10) for row in base.report.layers}
            found = {name: error / max(sum(errors.values()), 1e-300) for name, error in errors.items()}
        return found


def _better(recipe: Recipe) -> Recipe:
    """What costs no bytes: a method that sees the data, scales per channel, the default ranges and corrections."""
    weights = replace(recipe.weights, bias_correction=True)
    if Needs.MOMENTS not in weights.method.needs:
        weights = replace(weights, method=Gptq())
    if weights.granularity == "per-tensor":
        weights = replace(weights, granularity="per-channel")
    activations = Auto() if recipe.has_grids else recipe.activations
    return replace(recipe, weights=weights, activations=activations, equalize=True)


def _rules(bits: Mapping[str, int]) -> tuple[LayerRule, ...]:
    return tuple(
        LayerRule(glob.escape(name), skip=True) if each == FLOAT else LayerRule(glob.escape(name), bits=each)
        for name, each in bits.items()
    )


def _called(bits: Mapping[str, int]) -> str:
    floats = sum(each == FLOAT for each in bits.values())
    return f"{len(bits) - floats} layers with more bits" + (f", {floats} in float" if floats else "")


def _error(result: Result) -> float:
    """Energy of the error at the worst output, relative."""
    return float(10 ** (-result.report.proof.comparison.sqnr_db / 10))
