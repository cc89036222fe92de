"""Allocation of longer words to where they take away most error for their price, until the budget is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ptq.allocation.bit_plan import LONGEST, BitPlan, LayerBits
from ptq.allocation.budget import Bound, Cost
from ptq.core.arrays import Float
from ptq.sensitivity.table import FLOAT, SensitivityTable

Index = NDArray[np.intp]

FREE = 1e-200
"""Price of a longer word that costs nothing more."""


@dataclass(frozen=True)
class Greedy:
    """Spend a budget step by step, each step the one that gains most for its price.

    Every output feature that the table tells apart goes its own way, every other layer goes as a whole. A step may pass
    over word lengths that are worse bargains than what lies behind them. As long as every step fits, the plan is the
    best that its cost can buy; in the end it errs more than the best of all by what the first step that did not fit
    gains, at most.
    """

    bounds: ClassVar[Bound] = Bound.COST

    def allocate(self, table: SensitivityTable, cost: Cost, limit: float) -> BitPlan:
        """Spend what the shortest words leave of the limit.

        Args:
            table: Errors by layer, or by output feature.
            cost: Cost of words. An output feature's price is its part of what all of the layer's together cost.
            limit: Most cost of all layers.

        Returns:
            Bits of every layer, of each of its features where the table tells them apart; of more than a byte a byte.
        """
        options = [_Options.of(table, index, cost) for index in range(len(table.layers))]
        budget = limit - sum(cost.of(name, bits) for name, bits in table.shortest.items())
        reached = [each.start for each in options]
        steps = _Steps.of(options)
        for item in np.argsort(-steps.gain / steps.price, kind="stable"):
            at, row = reached[steps.layer[item]], steps.row[item]
            if steps.price[item] <= budget and at[row] == steps.start[item]:  # no step before the one that leads to it
                budget -= steps.price[item]
                at[row] = steps.end[item]
        return BitPlan({each.name: each.at(own) for each, own in zip(options, reached, strict=True)})


@dataclass(frozen=True)
class _Options:
    """Word lengths that the output features of one layer may have.

    Attributes:
        name: Name of the layer.
        bits: Word lengths, ascending.
        error: Error at each word length, infinite where that is ruled out. Shape [features, bits]; [1, bits] of a layer
            that goes as a whole.
        price: Price of each word length in one feature. Shape [bits].
        by_feature: Whether features were told apart.
    """

    name: str
    bits: tuple[int, ...]
    error: Float
    price: Float
    by_feature: bool

    @staticmethod
    def of(table: SensitivityTable, index: int, cost: Cost) -> _Options:
        name = table.layers[index]
        rows = table.rows.get(name)
        error = table.error[index][None] if rows is None else rows
        if rows is not None:  # a layer is on codes as a whole, or not at all
            error = np.where(np.array(table.bits) == FLOAT, np.inf, rows)
        price = np.array([cost.of(name, bits) for bits in table.bits], np.float64) / len(error)
        return _Options(name, table.bits, error, price, rows is not None)

    @property
    def start(self) -> Index:
        """Columns of the shortest words. Shape [features]."""
        start: Index = np.isfinite(self.error).argmax(1)
        return start

    def at(self, reached: Index) -> LayerBits:
        """Return the word lengths at some columns."""
        words = tuple(min(self.bits[column], LONGEST) for column in reached)
        if self.by_feature:
            return words
        return FLOAT if self.bits[reached[0]] == FLOAT else words[0]

    def steps(self) -> Iterator[tuple[Index, Index, Index, Float, Float]]:
        """Yield first steps of all features, then second ones: features, columns left and reached, gains, prices.

        Each is the best bargain that lies ahead of its feature. Features that have nothing to gain stop.
        """
        features, start = np.arange(len(self.error)), self.start
        while len(features):
            index = np.arange(len(features))
            gain = self.error[features, start][:, None] - self.error[features]
            price = np.maximum(self.price - self.price[start][:, None], FREE)
            ahead = np.arange(len(self.bits)) > start[:, None]
            end = np.where(ahead, gain / price, -np.inf).argmax(1)
            gain, price = gain[index, end], price[index, end]
            goes_on = (end > start) & (gain > 0)
            features, start, end = features[goes_on], start[goes_on], end[goes_on]
            yield features, start, end, gain[goes_on], price[goes_on]
            start = end


@dataclass(frozen=True)
class _Steps:
    """Steps that all layers could take. Shapes [steps].

    Attributes:
        layer: Index of the layer.
        row: Index of the feature in its layer.
        start: Column that the step leaves.
        end: Column that it reaches.
        gain: Error that goes.
        price: Price of the step.
    """

    layer: Index
    row: Index
    start: Index
    end: Index
    gain: Float
    price: Float

    @staticmethod
    def of(options: list[_Options]) -> _Steps:
        none = np.zeros(0, np.intp)
        parts = [(none, none, none, none, none.astype(float), none.astype(float))]
        for index, each in enumerate(options):
            parts += [(np.full(len(step[0]), index), *step) for step in each.steps()]
        return _Steps(*(np.concatenate(column) for column in zip(*parts, strict=True)))
