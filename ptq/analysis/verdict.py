"""Verdict from figures: which goals were missed, how the model stands without any, and what else a user should know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Literal

from ptq.analysis.compare import Accuracy, Comparison
from ptq.analysis.floor import Standing, worst_standing
from ptq.analysis.latency import Latency
from ptq.analysis.verify import Verification
from ptq.core.errors import RecipeError
from ptq.core.interval import share_text
from ptq.core.layer_row import LayerRow
from ptq.recipe import Goals, Recipe

Level = Literal["missed", "poor", "repaired", "warning"]
LEVELS: tuple[Level, ...] = ("missed", "poor", "repaired", "warning")
"""Levels of findings, the gravest first."""

Word = Literal["goals met", "goal missed", "holds", "poor", "not judged"]
"""Words of verdicts, in the terminal, the card, the report and JSON alike."""

SLOWER = 1.02  # a ratio within two percent of 1 is noise


@dataclass(frozen=True)
class Finding:
    """A missed goal or a warning.

    Attributes:
        level: `missed`: a goal of the user was missed. `poor`: an output is below the default floor. `repaired`: it
            was, and this was done about it. `warning`: worth knowing.
        text: What, and what was measured to help.
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
        floor: How the worst output stands against the default floor; empty where nobody looked at it.
        word: The verdict in a word or two. Without a goal a model `holds`, or it is `poor`; on random data neither.
    """

    findings: tuple[Finding, ...]
    num_goals: int = 0
    floor: str = ""
    word: Word = "holds"

    @property
    def passed(self) -> bool:
        """Whether every goal was met; without any, whether the outputs are at the default floor or were accepted."""
        return not any(finding.level in ("missed", "poor") for finding in self.findings)

    def with_finding(self, finding: Finding) -> Verdict:
        """Return the verdict with one more finding, in its place."""
        return replace(self, findings=in_order([*self.findings, finding]))


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, the gravest first."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))


def judge_accuracy(comparison: Comparison, goals: Goals) -> Iterator[Finding]:
    """Yield findings on the outputs: goals that they miss.

    Raises:
        RecipeError: A goal cannot be checked on this model or data.
    """
    if goals.min_sqnr_db is not None and comparison.sqnr_db < goals.min_sqnr_db:
        worst = min(comparison.outputs, key=lambda row: row.sqnr_db)
        yield Finding(
            "missed",
            f"SQNR of output {worst.name!r} is {worst.sqnr_db:.2f} dB, the goal is {goals.min_sqnr_db:g} dB",
        )
    if goals.min_agreement is not None:
        agreement = comparison.agreement
        if agreement is None:
            raise RecipeError("--min-agreement needs an output with classes; this model has none, use --min-sqnr-db")
        if agreement < goals.min_agreement:
            share = share_text(agreement, comparison.num_samples)
            text = f"agreement is {share} on {comparison.num_samples} samples, the goal is {goals.min_agreement:g}"
            yield Finding("missed", text)
    if goals.max_drop is not None:
        yield from _judge_drop(comparison.accuracies, goals.max_drop)


def judge_floor(standing: Standing, *, own: bool) -> Iterator[Finding]:
    """Yield a finding when an output is below the default floor.

    Args:
        standing: How the worst output stands.
        own: Whether the user decides what is good enough: by a goal for accuracy, or by accepting the model.
    """
    if not standing.holds:
        yield Finding("warning" if own else "poor", f"output {standing.name!r} is far from float's: {standing.text}")


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
            f"latency ratio is {latency.ratio:.3f}, the goal is {goals.max_latency_ratio:g}",
            measured=True,
        )
    elif latency.ratio > SLOWER:
        yield Finding(
            "warning",
            f"slower than float on this machine: {latency.value_ms:.3f} ms against {latency.reference_ms:.3f} ms",
            measured=True,
        )


def judge_size(before: int, after: int) -> Iterator[Finding]:
    """Yield a warning when the quantized model is larger."""
    if after >= before:
        yield Finding(
            "warning",
            f"larger than float: {after} against {before} bytes; the float file is smaller and exact",
        )


def judge(
    proof: Verification,
    layers: Sequence[LayerRow] | None,
    sizes: tuple[int, int],
    recipe: Recipe,
    *,
    random_data: bool,
) -> Verdict:
    """Put all findings together.

    Args:
        proof: What was measured.
        layers: The quantized layers; None where none was to be quantized.
        sizes: Bytes before and after.
        recipe: What the user asked for.
        random_data: Whether the calibration data was random.

    Returns:
        The verdict, missed goals first.
    """
    goals, standing = recipe.goals, worst_standing(proof.comparison)
    findings = [*judge_accuracy(proof.comparison, goals), *judge_latency(proof.latency, goals), *judge_size(*sizes)]
    if not random_data:
        findings += judge_floor(standing, own=goals.for_accuracy or recipe.accept_poor)
    if layers is not None and not layers:
        findings.append(Finding("warning", "no layer runs on integers: see the card for why"))
    if proof.kernels.fallbacks:
        named = ", ".join(f"{count} {op}" for op, count in proof.kernels.fallbacks.items())
        findings.append(
            Finding("warning", f"{named} decode their weights on every run instead of computing on integers")
        )
    if random_data:
        findings.append(Finding("warning", "calibrated on random data: ranges and accuracy mean nothing; use --data"))
    word = word_for(findings, goals, standing, random_data=random_data)
    return Verdict(in_order(findings), count_goals(goals), standing.text, word)


def word_for(findings: Sequence[Finding], goals: Goals, standing: Standing, *, random_data: bool = False) -> Word:
    """Put a verdict into a word or two."""
    if any(finding.level == "missed" for finding in findings):
        return "goal missed"
    if random_data:
        return "not judged"
    if count_goals(goals) and (standing.holds or goals.for_accuracy):
        return "goals met"
    return "holds" if standing.holds else "poor"


def sentence(word: str, num_goals: int, floor: str) -> str:
    """Write a verdict in a few words, the same everywhere.

    Example:
        >>> sentence("goals met", 2, "")
        'goals met, all 2'
        >>> sentence("holds", 0, "SQNR 31.00 dB on 64 samples, the floor is 15 dB")
        'holds; no goal was set; SQNR 31.00 dB on 64 samples, the floor is 15 dB'
    """
    if word == "goals met":
        return f"goals met, all {num_goals}"
    if word in ("goal missed", "not judged", ""):
        return word or "unknown"
    return f"{word}; no goal was set; {floor}" if not num_goals else f"{word}; {floor}"


def judge_unchanged(proof: Verification, goals: Goals) -> Verdict:
    """Put the findings on a model together that goes as it came: goals alone, as it is neither smaller nor faster.

    Args:
        proof: What was measured.
        goals: What the user asked for.
    """
    standing, findings = worst_standing(proof.comparison), [*judge_accuracy(proof.comparison, goals)]
    findings += [finding for finding in judge_latency(proof.latency, goals) if finding.level == "missed"]
    return Verdict(tuple(findings), count_goals(goals), standing.text, word_for(findings, goals, standing))


def count_goals(goals: Goals) -> int:
    """Count the goals that are set."""
    return sum(goal is not None for goal in astuple(goals))
