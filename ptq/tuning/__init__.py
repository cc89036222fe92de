"""Recipes that are found by measuring: which layers are faster as integers, which need more to reach a goal."""

from __future__ import annotations

from dataclasses import replace

from ptq.core.progress import Progress, silent
from ptq.job import Job, Result
from ptq.pipeline import run
from ptq.tuning.latency import fastest


def tune(job: Job, progress: Progress = silent) -> Result:
    """Quantize a float model with the recipe that measuring finds, where the recipe asks for that.

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step.

    Returns:
        As `run`. The recipe in its report makes the same model without measuring.
    """
    if job.recipe.optimize == "accuracy":
        return run(job, progress)
    choice = fastest(job, progress)
    result = run(replace(job, recipe=choice.recipe), progress)
    return replace(result, report=replace(result.report, plans=choice.plans))
