"""The smallest model that meets a goal: what costs the output most gets more bits, or stays float, until it holds.

What costs nothing is tried first: a weight method that sees the data, scales per channel, the default choice of ranges.
Then each layer's part of the final error is measured once, and bits go where they take away most error for their bytes.
What longer words take away is a guess, the verdict is not: every recipe is run, and its miss corrects the next guess.
"""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptq.allocation import MoreBits
from ptq.allocation.bit_plan import shortest_of
from ptq.allocation.budget import Bytes
from ptq.analysis.diff import Pair
from ptq.analysis.diff.causes import Names
from ptq.analysis.diff.network import SwitchedNetwork
from ptq.analysis.report import Attempt
from ptq.calibration.observers import Auto
from ptq.calibration.shards import CalibrationShards
from ptq.core.layer_row import LayerRow
from ptq.core.problem import Needs
from ptq.core.progress import Progress, silent, within
from ptq.job import Job, Result
from ptq.pipeline import run
from ptq.recipe import LayerRule, Recipe
from ptq.sensitivity import RestoredShare
from ptq.sensitivity.problem import RoundedLayer
from ptq.sensitivity.table import FLOAT, SensitivityTable
from ptq.weights import Gptq

SAMPLES = 8
"""On which each layer's part of the error is measured."""

MOST_RUNS = 14
"""After which the best that was found is taken."""

REFINED = 2
"""Runs that look for a smaller model once the goal is met."""

HALF, STRIDE = 0.5, 0.05
"""How much lower the next try aims when nothing is known, and at most: far ahead the model of the error is no help."""

WHOLE = 8
BITS = (*range(2, WHOLE + 1), FLOAT)
"""Word lengths that a layer may have."""


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
        table, cost = self._table(base), Bytes({row.name: row.num_weights for row in base.report.layers})
        fails, holds, refined = _error(base), None, 0
        aim = max(self._wanted(base) or fails * HALF, fails * STRIDE)
        while len(self.tries) < MOST_RUNS and refined <= REFINED:
            plan = MoreBits().allocate(table, cost, aim)
            bits = {name: shortest_of(each) for name, each in plan.layers.items() if each != table.shortest[name]}
            asked = replace(recipe, layers=(*recipe.layers, *_rules(bits)))
            if len(plan.floats) == len(table.layers):
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

    def _table(self, base: Result) -> SensitivityTable:
        """What each layer does to the output at its word length and at longer ones: measured where it can be."""
        rows, samples = base.report.layers, itertools.islice(self._job.evaluation or self._job.data, SAMPLES)
        layers = [RoundedLayer(row.name, row.num_bits, *_errors(row)) for row in rows]
        network = SwitchedNetwork(_error(base), {})
        if base.delivery.data is not None:
            names = Names("the float model", "the quantized model", self._job.data.description)
            pair = Pair(self._job.source, base.delivery.data, names, self._job.custom_ops)
            network = SwitchedNetwork.measured(pair, samples, _error(base), within(self._progress, "layers"))
        table = RestoredShare().measure(layers, BITS, network.or_guessed(layers))
        return table.among({row.name: [bits for bits in BITS if bits >= row.num_bits] for row in rows})


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


def _errors(row: LayerRow) -> tuple[NDArray[np.float64], float]:
    """Energies of the errors of a layer's weight and input, relative to theirs."""
    return np.array([10 ** (-row.weight_sqnr_db / 10)]), 10 ** (-row.input_sqnr_db / 10)


def _error(result: Result) -> float:
    """Energy of the error at the worst output, relative."""
    return float(10 ** (-result.report.proof.comparison.sqnr_db / 10))
