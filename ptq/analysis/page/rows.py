"""Rows of the page, taken from a card and its measurements, and never more of them than a page holds."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from ptq.analysis.card_file import BenchFile, Card, Operator
from ptq.analysis.page.figures import histogram
from ptq.analysis.verdict import Finding, count_goals, in_order, sentence
from ptq.core.decibels import NO_ERROR_DB
from ptq.core.distribution import Distribution
from ptq.core.layer_row import LayerRow
from ptq.passes.modules import shown_name
from ptq.recipe.toml import recipe_to, recipe_toml

MOST_LAYERS, MOST_FIGURES, MOST_LINES, MOST_OPERATORS = 500, 100, 200, 12


@dataclass(frozen=True)
class LayerLine:
    """A line of the table of layers.

    Attributes:
        row: As the card has it.
        error_db: Signal to error at its output, dB: as measured, or of weight and input together.
        clipped_weights: Share of its weights beyond its codes; None if the card does not say.
        clipped_inputs: Likewise of its input.
    """

    row: LayerRow
    error_db: float
    clipped_weights: float | None
    clipped_inputs: float | None


@dataclass(frozen=True)
class Drawing:
    """A histogram with its name.

    Attributes:
        name: Layer or value.
        spread: The figures.
        svg: The picture; empty where there is nothing to draw.
    """

    name: str
    spread: Distribution
    svg: str


@dataclass(frozen=True)
class OperatorLine:
    """A line of a profile: one operator.

    Attributes:
        name: What onnxruntime calls it.
        spent: Nodes and milliseconds.
        width: Share of the slower model's time.
    """

    name: str
    spent: Operator
    width: float


class View:
    """View of a card and its measurements that the page reads.

    Args:
        card: What happened.
        bench: What was measured; left out if it belongs to another model.
    """

    def __init__(self, card: Card, bench: BenchFile | None) -> None:
        self.is_stale = bench is not None and bench.quantized_sha256 != card.quantized_model.sha256
        self.card, self.bench = card, None if self.is_stale else bench

    @property
    def verdict(self) -> str:
        """Verdict in one line."""
        verdict = self.card.verdict
        text = sentence(verdict.word, count_goals(self.card.recipe.goals), verdict.floor)
        return text[0].upper() + text[1:] + ("" if verdict.passed else "; no model was delivered")

    @property
    def mood(self) -> str:
        """Class of the verdict's line: good only where goals were set and met."""
        verdict = self.card.verdict
        return "missed" if not verdict.passed else "passed" if verdict.word == "goals met" else "neutral"

    @property
    def findings(self) -> list[Finding]:
        """Findings, missed goals first, those that rest on a time included."""
        measured = self.bench.findings if self.bench else ()
        return list(in_order([*self.card.verdict.findings, *measured]))[:MOST_LINES]

    def shown(self, name: str) -> str:
        """Write a node's name, its module first."""
        return shown_name(name, self.card.modules)

    @property
    def layers(self) -> list[LayerLine]:
        """Lines of the layers, the worst first."""
        spreads = self.card.spreads
        lines = [
            LayerLine(row, _error_db(row), _clipped(spreads.weights, row.name), _clipped(spreads.activations, row.grid))
            for row in self.card.layers
        ]
        return sorted(lines, key=lambda line: line.error_db)[:MOST_LAYERS]

    @property
    def bits(self) -> str:
        """Word lengths of the weights, ascending."""
        return ", ".join(str(bits) for bits in sorted({row.num_bits for row in self.card.layers}))

    @property
    def left_float(self) -> list[tuple[str, list[str]]]:
        """Reasons with the nodes that they keep in float, the commonest first."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.card.left_float.items():
            reasons.setdefault(reason, []).append(self.shown(name))
        return sorted(reasons.items(), key=lambda item: -len(item[1]))[:MOST_LINES]

    @property
    def drawings(self) -> list[tuple[str, list[Drawing], int]]:
        """Histograms of activations and of weights, the coarsest first, and how many more there are of each."""
        spreads = self.card.spreads
        kinds = []
        for kind, some in (("activations", spreads.activations), ("weights", spreads.weights)):
            worst = sorted(some.items(), key=lambda item: item[1].sqnr_db)[:MOST_FIGURES]
            drawn = [Drawing(name, spread, histogram(spread)) for name, spread in worst]
            kinds.append((kind, drawn, len(some) - len(worst) + spreads.omitted.get(kind, 0)))
        return kinds

    @property
    def profiles(self) -> list[tuple[str, list[OperatorLine], float]]:
        """Profiles of both models on one scale: where their time goes; empty if it was not measured."""
        if self.bench is None or not {"float", "quantized"} <= self.bench.operators.keys():
            return []
        both = {name: self.bench.operators[name] for name in ("float", "quantized")}
        totals = {name: sum(each.ms for each in found.values()) for name, found in both.items()}
        longest = max(*totals.values(), 1e-9)
        return [(name, list(_lines(found, longest)), totals[name]) for name, found in both.items()]

    @property
    def recipe(self) -> str:
        """Recipe with every decision as TOML; the target is named even where it was this machine's."""
        return recipe_toml(recipe_to(replace(self.card.recipe, target=self.card.quantization.target)))

    @property
    def command(self) -> str:
        """Command that gives the same bytes."""
        data = ["--random-data"] if self.card.data.is_random else ["--data", "DATA"]
        names = self.card.float_model.name, self.card.quantized_model.name
        return shlex.join(["ptq", "quantize", names[0], *data, "--recipe", "recipe.toml", "-o", names[1] or "OUT"])


def _error_db(row: LayerRow) -> float:
    """Return the ratio of signal to error at a layer's output, dB.

    As measured; else, since errors of weight and input have little to do with each other, their energies add.
    """
    if row.output_sqnr_db is not None:
        return row.output_sqnr_db
    both = (row.weight_sqnr_db, row.input_sqnr_db)
    noise = sum(10 ** (-max(min(each, NO_ERROR_DB), -NO_ERROR_DB) / 10) for each in both if each < NO_ERROR_DB)
    return -10 * math.log10(noise) if noise > 0 else NO_ERROR_DB


def _clipped(spreads: Mapping[str, Distribution], name: str) -> float | None:
    return spreads[name].clipped if name in spreads else None


def _lines(found: Mapping[str, Operator], longest: float) -> Iterator[OperatorLine]:
    ranked = sorted(found.items(), key=lambda item: -item[1].ms)
    rest = ranked[MOST_OPERATORS:]
    for name, spent in islice(ranked, MOST_OPERATORS):
        yield OperatorLine(name, spent, spent.ms / longest)
    if rest:
        spent = Operator(sum(each.nodes for _, each in rest), sum(each.ms for _, each in rest))
        yield OperatorLine(f"{len(rest)} others", spent, spent.ms / longest)
