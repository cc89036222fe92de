"""Tuning of recipes by measuring: which layers are faster as integers, which need more to reach a goal or the floor."""

from __future__ import annotations

from dataclasses import replace

from ptq.analysis.report import TimedPlan
from ptq.core.progress import Progress, silent
from ptq.given.find import given_integers
from ptq.job import Job, Result
from ptq.models.load import load_model
from ptq.pipeline import run
from ptq.recipe.channels import FEWEST
from ptq.tuning.advice import advised
from ptq.tuning.fewest import fewest
from ptq.tuning.goals import reach
from ptq.tuning.latency import fastest
from ptq.tuning.repair import repair


def tune(job: Job, progress: Progress = silent) -> Result:
    """Quantize a float model with the recipe that measuring finds, where the recipe asks for that.

    Args:
        job: Model, data and recipe.
        progress: Called with the name of each step.

    Returns:
        Model and report, as `run` returns them. The recipe in the report makes the same model without measuring.
    """
    job, plans = replace(job, recipe=job.recipe.settled(random_data=job.data.is_random)), tuple[TimedPlan, ...]()
    searches = job.recipe.search or job.recipe.optimize == "latency" or job.recipe.squeeze == FEWEST
    if searches and given_integers(load_model(job.source)) is not None:
        return run(job, progress)  # nothing of it is up to us but what came in float
    if job.recipe.optimize == "latency":
        choice = fastest(job, progress)
        job, plans = replace(job, recipe=choice.recipe), choice.plans
    if job.recipe.squeeze == FEWEST:
        result = fewest(job, run, progress)
    else:
        result = reach(job, progress) if job.recipe.search else run(job, progress)
    if result.report.unchanged:
        return result
    final = job.recipe.search or job.recipe.accept_poor or job.flows_by or result.delivery.data is None
    if result.report.verdict.word == "poor" and not final:
        result = repair(job, result, progress)
    result = replace(result, report=replace(result.report, plans=plans))
    return advised(job, result, progress) if job.advises else result
