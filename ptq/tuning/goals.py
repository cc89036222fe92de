"""Search for the smallest model that meets a goal: what costs most gets more bits, or stays float, until it holds.

What costs nothing is tried first: a weight method that sees the data, scales per channel, the default choice of ranges.
Then the part of the final error that each weight and each grid has is measured once, and bits go where they take away
most error for their bytes. What longer words take away is a guess, the verdict is not: every recipe is run, and its
miss corrects the next guess. A model below the default floor is repaired in the same way, with fewer tries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ptq.allocation import MoreBits
from ptq.allocation.bit_plan import LayerBits, shortest_of
from ptq.analysis.floor import FLOOR_DB
from ptq.analysis.report import Attempt
from ptq.calibration.observers import Auto, MinMax, Observer, Percentile
from ptq.calibration.shards import CalibrationShards
from ptq.core.errors import PtqError
from ptq.core.problem import Needs
from ptq.core.progress import Progress, silent, within
from ptq.job import Job, Result
from ptq.pipeline import run
from ptq.recipe import Recipe
from ptq.sensitivity.table import FLOAT
from ptq.tuning.blame import BYTE, Blame, blame, error_of
from ptq.weights import Gptq, Rtn

SAMPLES = 8
"""Samples on which each part of the error is measured."""

MOST_RUNS = 14
"""Runs after which the best that was found is taken."""

REFINED = 2
"""Runs that look for a smaller model once the goal is met."""

HALF, STRIDE = 0.5, 0.05
"""Factors by which the next try aims lower, when nothing is known and at most: far off the error's model is no help."""

TINY = 1e-6
"""Share of the error below which aiming lower is no use: what is left is of another kind."""

OBSERVERS: Mapping[str, Observer] = {"clipped": MinMax(), "outliers": Percentile()}
"""Cause of an error, as `ptq diff` names it -> the choice of ranges that mends it."""


def reach(job: Job, progress: Progress = silent) -> Result:
    """Quantize so that the recipe's goals are met, with as few bytes as can be found.

    Args:
        job: Model, data and recipe; its goals that cannot be met by more bits, like latency, are only judged.
        progress: Called with the name of each step.

    Returns:
        Smallest model that meets the goals, its report with a recipe that makes it in one go. If none does, the
        best one, whose verdict says what is missing. After an interruption, the smallest so far, if there is one.
    """
    search = Search(replace(job, recipe=replace(job.recipe, search=False)), progress)
    search.run("as given", search.job.recipe)
    return search.finished()


@dataclass
class Search:
    """A search over recipes, each run with one job.

    Attributes:
        job: Model, data and recipe.
        progress: Told which try runs.
        holds: Whether a result is good enough.
        most: Runs after which the search ends.
        refined: Runs that look for a smaller model once one is good enough.
        margin_db: How far above the default floor is aimed, where that is the goal.
        runs: Recipe -> what came of it.
        tries: The same in the report's words.
        met: The smallest that is good enough.
    """

    job: Job
    progress: Progress
    holds: Callable[[Result], bool] = field(default=lambda result: result.report.verdict.passed)
    most: int = MOST_RUNS
    refined: int = REFINED
    margin_db: float = 0.0
    runs: dict[Recipe, Result] = field(default_factory=dict)
    tries: list[Attempt] = field(default_factory=list)
    met: Result | None = None
    _blamed: tuple[Result, Blame] | None = None

    def finished(self) -> Result:
        """Search until something is good enough, and return the best of all."""
        try:
            if self.met is None:
                self._search()
        except KeyboardInterrupt:
            if self.met is None:
                raise
        return replace(self.best, report=replace(self.best.report, tries=tuple(self.tries)))

    def _search(self) -> None:
        """Try one kind of change after the other, the cheapest first."""
        self.free_of_charge()
        if self.met is not None:
            return
        for step in (self.better_ranges, self.with_more_bits):
            if self.met is None:
                step()
        if self.refined or self.met is None:
            self.at_eight_bits()
        for last in (self.by_rounding, self.in_float):
            if self.met is None:
                last()

    @property
    def best(self) -> Result:
        """Smallest model that is good enough, or the nearest to it."""
        return self.met or min(self.runs.values(), key=error_of)

    def free_of_charge(self) -> None:
        """Try everything that costs no bytes, at once."""
        self.run("better choices at no cost", _better(self.job.recipe))

    def better_ranges(self) -> None:
        """Try the choice of ranges that mends the greatest single cause, if that is one."""
        recipe, causes = self.recipe_of(self.best), [found.kind for found in self.blamed.findings[:1]]
        for cause in causes:
            if recipe.has_grids and cause in OBSERVERS:
                name = f"ranges by {type(OBSERVERS[cause]).__name__.lower()}"
                self.run(name, replace(recipe, activations=OBSERVERS[cause]))

    def with_more_bits(self) -> None:
        """Give weights more bits, or leave them and grids in float, aiming lower until the goal is met; then higher."""
        base, recipe, blamed = self.best, self.recipe_of(self.best), self.blamed
        table = blamed.table
        fails, holds, refined = error_of(base), None, 0
        aim = max(self._wanted(base) or fails * HALF, fails * STRIDE)
        while len(self.tries) < self.most and refined <= self.refined:
            plan = MoreBits().allocate(table, blamed.prices, aim)
            bits = {name: each for name, each in plan.layers.items() if shortest_of(each) != table.shortest[name]}
            asked = replace(recipe, layers=(*recipe.layers, *blamed.rules(bits)))
            if blamed.leaves_nothing(bits) or aim < error_of(base) * TINY:
                return  # that is the float model, and no goal met by quantizing
            if asked in self.runs:
                if holds is not None:
                    return
                fails = aim = aim * HALF  # too small a step to change anything
                continue
            found = self.run(_called(bits, blamed), asked)
            if found is None:
                return
            if self.holds(found):
                holds, refined = aim, refined + 1
            else:
                fails, refined = aim, refined + (holds is not None)
            wanted = self._wanted(base)
            missed = HALF if wanted is None else min(max(wanted / error_of(found), STRIDE), 0.9)
            aim = aim * missed if holds is None else math.sqrt(holds * fails)

    def at_eight_bits(self) -> None:
        """Try whole bytes: short codes need unpacking, whose bytes can be more than they save in a very small model."""
        base, recipe = self.best, self.recipe_of(self.best)
        if sum(row.num_weights for row in base.report.layers) < base.delivery.num_bytes:
            layers = tuple(rule for rule in recipe.layers if rule.bits is None or rule.float_kernel)
            weights = replace(recipe.weights, bits=BYTE, first_last_bits=None, extra_macs=0.0)
            self.run("all at 8 bits", replace(recipe, weights=weights, layers=layers, bit_plan=None))

    def by_rounding(self) -> None:
        """Try what looks at weights alone: samples unlike all others mislead whatever learns from them."""
        self.run("plain rounding", _plain(self.job.recipe), beyond=True)

    def in_float(self) -> None:
        """Try weights on codes with all activations in float: as small, and no faster than the float model."""
        for recipe in (_better(self.job.recipe), _plain(self.job.recipe)):
            if self.met is None and not recipe.weight_only:
                plain = replace(recipe, weight_only=True, activation_bits=BYTE)
                self.run("all activations in float", plain, beyond=True)

    def run(self, name: str, recipe: Recipe, *, beyond: bool = False) -> Result | None:
        """Run the job with a recipe, as one try; not one that was tried before, nor when the tries are over.

        Raises:
            PtqError: The first recipe cannot be run. Others that cannot are passed over.
        """
        if recipe in self.runs or (len(self.tries) >= self.most and not beyond):
            return None
        job = replace(self.job, recipe=recipe, shards=CalibrationShards())
        try:
            result = run(job, within(self.progress, f"try {len(self.tries) + 1}, {name}"))
        except PtqError:
            if not self.runs:
                raise
            return None
        self.note(name, recipe, result)
        return result

    def note(self, name: str, recipe: Recipe, result: Result) -> None:
        """Keep what came of a recipe."""
        self.runs[recipe] = result
        holds, size = self.holds(result), result.delivery.num_bytes
        self.tries.append(Attempt(name, result.report.proof.comparison.sqnr_db, size, holds))
        if holds and (self.met is None or size < self.met.delivery.num_bytes):
            self.met = result
        for other in (each.workspace for each in self.runs.values()):
            if other is not None and other != self.best.workspace:
                other.remove()  # tensors of a model that nobody will get, as large as that

    def recipe_of(self, result: Result) -> Recipe:
        """Return the recipe that a result was made with."""
        return next(recipe for recipe, each in self.runs.items() if each is result)

    @property
    def blamed(self) -> Blame:
        """Blame for the error of the best so far."""
        base = self.best
        if self._blamed is None or self._blamed[0] is not base:
            samples = itertools.islice(self.job.data if self.job.evaluation is None else self.job.evaluation, SAMPLES)
            self._blamed = base, blame(self.job, base, samples, within(self.progress, "layers"))
        return self._blamed[1]

    def _wanted(self, base: Result) -> float | None:
        """Return the error that an SQNR goal allows, or the default floor, if that is what was missed."""
        goals = self.job.recipe.goals
        least = goals.min_sqnr_db if goals.for_accuracy else FLOOR_DB + self.margin_db
        return None if least is None or least <= base.report.proof.comparison.sqnr_db else 10 ** (-least / 10)


def _plain(recipe: Recipe) -> Recipe:
    """Return a recipe that rounds to bytes and corrects nothing."""
    weights = replace(recipe.weights, method=Rtn(), bits=BYTE, first_last_bits=None, bias_correction=False)
    return replace(recipe, weights=replace(weights, extra_macs=0.0), bit_plan=None)


def _better(recipe: Recipe) -> Recipe:
    """Return a recipe with all that costs no bytes: a method that sees data, scales per channel, default ranges."""
    weights = replace(recipe.weights, bias_correction=True)
    if Needs.MOMENTS not in weights.chosen.needs:
        weights = replace(weights, method=Gptq())
    if weights.granularity == "per-tensor":
        weights = replace(weights, granularity="per-channel")
    activations = Auto() if recipe.has_grids else recipe.activations
    return replace(recipe, weights=weights, activations=activations, equalize=True)


def _called(bits: Mapping[str, LayerBits], blamed: Blame) -> str:
    """Name a try by what it changes."""
    longer = sum(each != FLOAT for each in bits.values())
    floats = len([rule for rule in blamed.rules(bits) if rule.skip or rule.float_kernel])
    return f"{longer} layers with more bits" + (f", {floats} in float" if floats else "")
