"""Search for the fewest products with which a float or quantized model meets its goals: by halves, few tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ptq.analysis.report import Attempt
from ptq.calibration.shards import CalibrationShards
from ptq.core.errors import RecipeError
from ptq.core.progress import Progress, within
from ptq.job import Job, Result

MOST_TRIES = 6
"""Runs after the one in which nothing leaves that carries something."""

NEAR = 0.03
"""Shares of the products that are told apart."""

FIRST = 0.75
"""Share that is tried first: without training, few networks keep a goal at half of their products."""


def fewest(job: Job, run: Callable[[Job, Progress], Result], progress: Progress) -> Result:
    """Take channels away as long as the goals are met.

    Args:
        job: Model, data and recipe with goals for accuracy.
        run: Makes a model by a recipe.
        progress: Called with the name of each step.

    Returns:
        The model with the fewest products that meets the goals, its report with a recipe that makes it in one go. If
        none does, the one that no channel left that carries something.

    Raises:
        RecipeError: The data are random numbers, which channels cannot be weighed on.
    """
    if job.data.is_random:
        raise RecipeError("squeeze by a goal weighs channels on data, and random numbers show nothing; give --data")
    tries = list[Attempt]()

    def tried(share: float | None) -> Result:
        name = "nothing but what carries nothing" if share is None else f"{share:.0%} of the products"
        recipe = replace(job.recipe, squeeze="auto", max_macs=share)
        own = replace(job, recipe=recipe, shards=CalibrationShards())
        result = run(own, within(progress, f"try {len(tries) + 1}, {name}"))
        proof, passed = result.report.proof, result.report.verdict.passed
        tries.append(Attempt(name, proof.comparison.sqnr_db, result.delivery.num_bytes, passed))
        return result

    best, holds, fails, share = tried(None), 1.0, 0.0, FIRST
    for _ in range(MOST_TRIES if best.report.verdict.passed else 0):
        try:
            found = tried(share)
        except RecipeError:  # no such share: all that may go is gone before
            fails = share
        else:
            best, holds, fails = (found, share, fails) if found.report.verdict.passed else (best, holds, share)
        if holds - fails <= NEAR:
            break
        share = (holds + fails) / 2
    return replace(best, report=replace(best.report, tries=tuple(tries)))
