"""Verdict from figures: which goals were missed, and what a user should know even if none was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from ptq.analysis.compare import Accuracy, Comparison
from ptq.analysis.latency import Latency
from ptq.analysis.verify import Verification
from ptq.core.errors import RecipeError
from ptq.core.layer_row import LayerRow
from ptq.recipe import Goals

Level = Literal["missed", "warning"]
POOR_SQNR_DB = 15.0  # a class or two in a hundred usually change here
SLOWER = 1.02  # a ratio within two percent of 1 is noise


@dataclass(frozen=True)
class Finding:
    """A missed goal or a warning, with what to try next.

    Attributes:
        level: `missed`: a goal of the user was missed. `warning`: worth knowing.
        text: What, and what to try next.
        measured: Whether it rests on a time, which varies from run to run.
    """

    level: Level
    text: str
    measured: bool = False


@dataclass(frozen=True)
class Verdict:
    """Verdict at the end of a run.

    Attributes:
        findings: In order of weight.
        num_goals: How many goals were set.
    """

    findings: tuple[Finding, ...]
    num_goals: int = 0

    @property
    def passed(self) -> bool:
        """Whether every goal was met."""
        return not any(finding.level == "missed" for finding in self.findings)


def judge_accuracy(comparison: Comparison, goals: Goals) -> Iterator[Finding]:
    """Yield findings on the outputs: goals that they miss.

    Raises:
        RecipeError: A goal cannot be checked on this model or data.
    """
    if goals.min_sqnr_db is not None and comparison.sqnr_db < goals.min_sqnr_db:
        worst = min(comparison.outputs, key=lambda row: row.sqnr_db)
        yield Finding(
            "missed",
            f"SQNR of output {worst.name!r} is {worst.sqnr_db:.2f} dB, the goal is {goals.min_sqnr_db:g} dB; "
            "try more samples, or --exclude the layers with the lowest input SQNR in the card",
        )
    if goals.min_agreement is not None:
        agreement = comparison.agreement
        if agreement is None:
            raise RecipeError("--min-agreement needs an output with classes; this model has none, use --min-sqnr-db")
        if agreement < goals.min_agreement:
            yield Finding(
                "missed", f"agreement is {agreement:.4f}, the goal is {goals.min_agreement:g}; try more samples"
            )
    if goals.max_drop is not None:
        yield from _judge_drop(comparison.accuracies, goals.max_drop)


def judge_fidelity(comparison: Comparison, layers: Sequence[LayerRow]) -> Iterator[Finding]:
    """Yield a warning when the outputs are far from float's, whether or not a goal was set."""
    if comparison.sqnr_db < POOR_SQNR_DB:
        worst = sorted(layers, key=lambda row: row.input_sqnr_db)[:3]
        names = " ".join(f"--exclude {row.name}" for row in worst)
        yield Finding(
            "warning",
            f"accuracy is poor: SQNR {comparison.sqnr_db:.1f} dB is below {POOR_SQNR_DB:g} dB; "
            f"try the layers with the coarsest inputs in float: {names}",
        )


def _judge_drop(accuracies: tuple[Accuracy, ...], max_drop: float) -> Iterator[Finding]:
    judged = [row for row in accuracies if row.name != "top5"]
    if not judged:
        raise RecipeError(
            "--max-drop needs labels or a --metric; add a `labels` array to the data, or use --min-agreement"
        )
    for row in judged:
        if row.reference - row.value > max_drop:
            yield Finding(
                "missed", f"{row.name} falls from {row.reference:.4f} to {row.value:.4f}, the goal allows {max_drop:g}"
            )


def judge_latency(latency: Latency, goals: Goals) -> Iterator[Finding]:
    """Yield a missed goal on time, and a warning when integers are slower than floats."""
    if goals.max_latency_ratio is not None and latency.ratio > goals.max_latency_ratio:
        yield Finding(
            "missed",
            f"latency ratio is {latency.ratio:.3f}, the goal is {goals.max_latency_ratio:g}; "
            "--exclude small or depthwise layers, or measure at the batch you deploy",
            measured=True,
        )
    elif latency.ratio > SLOWER:
        yield Finding(
            "warning",
            f"slower than float on this machine: {latency.value_ms:.3f} ms against {latency.reference_ms:.3f} ms; "
            "try --exclude on depthwise and tiny layers, or keep the float model where speed counts",
            measured=True,
        )


def judge_size(before: int, after: int) -> Iterator[Finding]:
    """Yield a warning when the quantized model is larger."""
    if after >= before:
        yield Finding(
            "warning",
            f"larger than float: {after} against {before} bytes; the model has too few weights, keep the float file",
        )


def judge(
    proof: Verification, layers: Sequence[LayerRow], sizes: tuple[int, int], goals: Goals, *, random_data: bool
) -> Verdict:
    """Put all findings together.

    Args:
        proof: What was measured.
        layers: The quantized layers.
        sizes: Bytes before and after.
        goals: What the user asked for.
        random_data: Whether the calibration data was random.

    Returns:
        The verdict, missed goals first.
    """
    findings = [*judge_accuracy(proof.comparison, goals), *judge_latency(proof.latency, goals), *judge_size(*sizes)]
    findings += judge_fidelity(proof.comparison, layers)
    if not layers:
        findings.append(Finding("warning", "no layer runs on integers: see the card for why, and keep the float model"))
    if proof.kernels.fallbacks:
        named = ", ".join(f"{count} {op}" for op, count in proof.kernels.fallbacks.items())
        findings.append(
            Finding("warning", f"{named} decode their weights on every run instead of computing on integers")
        )
    if random_data:
        findings.append(Finding("warning", "calibrated on random data: ranges and accuracy mean nothing; use --data"))
    return Verdict(tuple(sorted(findings, key=lambda finding: finding.level != "missed")), count_goals(goals))


def count_goals(goals: Goals) -> int:
    """Count the goals that are set."""
    return sum(goal is not None for goal in astuple(goals))
