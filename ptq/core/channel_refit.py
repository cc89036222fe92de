"""Channels that others can stand in for: what each costs the layer that sums over it, and the weights without it.

A layer computes W x. What of it is lost without some of the inputs p, once the weights of the others are refitted, is
known without refitting: with P the inverse of the covariance of x,

    min over V of E |W x - V x_kept|^2 = tr(W_p (P_pp)^-1 W_p^T)

and the best V x_kept + c is found from second moments of x and x_kept, whatever the number of samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.core.tree_sum import TreeSum
from ptq.core.unfold import Unfold

Block = NDArray[np.int64]

WORTH = 1e-6
"""Of the outputs' energy that new weights have to gain: less is rounding."""

RIDGE = 1e-4
"""Of the mean variance of a channel: what all of them may vary by beside what was seen."""

POSITIONS = 256
"""Of one sample that enter the second moments of channels, evenly spread."""

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""How strongly weights may be held to what they were, as shares of an input's variance."""


@dataclass(frozen=True)
class ChannelMoments:
    """Second moments of the channels of a value, with a 1 behind them: sums and the number of positions as well.

    Attributes:
        sums: Sum of [x, 1] [x, 1]^T over positions. Shape [channels + 1, channels + 1].
    """

    sums: TreeSum

    @staticmethod
    def of(values: NDArray[Any], axis: int, number: int) -> ChannelMoments:
        """Compute the moments of one sample.

        Args:
            values: The value.
            axis: Where the channels are.
            number: Number of the sample.

        Example:
            >>> ChannelMoments.of(np.array([[1.0, -2.0], [3.0, -2.0]]), 1, 0).covariance
            array([[1., 0.],
                   [0., 0.]])
        """
        rows = Unfold().rows(np.moveaxis(values, axis, -1), POSITIONS)[0].astype(np.float64)
        with_ones = np.concatenate([rows, np.ones((len(rows), 1))], 1)
        return ChannelMoments(TreeSum.of(with_ones.T @ with_ones, number))

    def merge(self, other: ChannelMoments) -> ChannelMoments:
        """Add the moments of two sets of samples; the order makes no difference."""
        return ChannelMoments(self.sums.merge(other.sums))

    @property
    def covariance(self) -> Float:
        """Covariance of the channels. Shape [channels, channels]."""
        whole = self.sums.value
        count = max(float(whole[-1, -1]), 1.0)
        means = whole[:-1, -1] / count
        return np.asarray(whole[:-1, :-1] / count - np.outer(means, means))


@dataclass(frozen=True)
class Elimination:
    """A layer some of whose inputs are gone, the weights of the others always refitted.

    Attributes:
        products: W^T W of the weights as they are refitted by now. Shape [channels, channels].
        inverse: Inverse covariance of the inputs that are left. Shape [channels, channels].
        energy: Variance of the outputs before anything was gone, summed over features.
    """

    products: Float
    inverse: Float
    energy: float

    @staticmethod
    def of(weight: NDArray[Any], covariance: Float) -> Elimination:
        """Begin with all inputs.

        Args:
            weight: Shape [features, channels].
            covariance: Of the channels. Shape [channels, channels].
        """
        wide = weight.astype(np.float64)
        ridge = max(RIDGE * float(np.trace(covariance)) / len(covariance), 1e-30)
        products = wide.T @ wide
        energy = max(float(np.sum(products * covariance)), 1e-30)
        inverse: Float = np.linalg.inv(covariance + ridge * np.eye(len(covariance))).astype(np.float64)
        return Elimination(products, inverse, energy)

    @property
    def costs(self) -> Float:
        """Share of the outputs' variance that is lost with each; 0 for those that are gone. Shape [channels]."""
        diagonal = np.diag(self.inverse)
        lost = np.divide(np.diag(self.products), diagonal, out=np.zeros(len(diagonal)), where=diagonal > 0)
        return np.asarray(lost / self.energy)

    def cost(self, block: Block) -> float:
        """Return the share of the outputs' variance that is lost with some channels together."""
        inverse, products = self.inverse[np.ix_(block, block)], self.products[np.ix_(block, block)]
        return float(np.trace(np.linalg.solve(inverse, products))) / self.energy

    def among(self, block: Block) -> Elimination:
        """Return the layer as far as some channels are concerned: what they cost, whichever of them go."""
        at = np.ix_(block, block)
        return Elimination(self.products[at], self.inverse[at], self.energy)

    def without(self, block: Block) -> Elimination:
        """Take some channels away and refit the others."""
        rows = np.linalg.solve(self.inverse[np.ix_(block, block)], self.inverse[block])  # [block, channels]
        crossed = self.products[:, block] @ rows
        products = self.products - crossed - crossed.T + rows.T @ self.products[np.ix_(block, block)] @ rows
        inverse = self.inverse - self.inverse[:, block] @ rows
        for matrix in (products, inverse):
            matrix[block], matrix[:, block] = 0.0, 0.0
        return Elimination(products, inverse, self.energy)


@dataclass(frozen=True)
class PairMoments:
    """Moments of what a layer reads in a changed network, and in the original one. Sums over positions, float64.

    Attributes:
        gram: Sum of x~ x~^T, x~ from the changed network. Shape [inputs left, inputs left].
        cross: Sum of x~ x^T, x from the original one. Shape [inputs left, inputs].
        total: Sum of x~. Shape [inputs left].
        original_total: Sum of x. Shape [inputs].
        count: Number of positions.
    """

    gram: Float
    cross: Float
    total: Float
    original_total: Float
    count: int

    @staticmethod
    def of(rows: NDArray[Any], original: NDArray[Any]) -> PairMoments:
        """Compute the moments of some positions.

        Args:
            rows: What the changed network gives the layer. Shape [positions, inputs left].
            original: What the original one gives it there. Shape [positions, inputs].
        """
        gram, cross = (np.matmul(rows.T, each).astype(np.float64) for each in (rows, original))
        total, original_total = (each.sum(0, dtype=np.float64) for each in (rows, original))
        return PairMoments(gram, cross, total, original_total, len(rows))

    def merge(self, other: PairMoments) -> PairMoments:
        """Add the sums of other positions."""
        return PairMoments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.total + other.total,
            self.original_total + other.original_total,
            self.count + other.count,
        )

    @property
    def means(self) -> tuple[Float, Float]:
        """Mean of x~ and of x. Shapes [inputs left] and [inputs]."""
        count = max(self.count, 1)
        return self.total / count, self.original_total / count

    @property
    def centered(self) -> PairMoments:
        """Moments about the means: what is left to the weights where a bias takes up every mean error."""
        mean, original_mean = self.means
        gram = self.gram - np.outer(self.total, mean)
        cross = self.cross - np.outer(self.total, original_mean)
        return PairMoments(gram, cross, np.zeros_like(self.total), np.zeros_like(self.original_total), self.count)

    def fit(self, wanted: Float, held: Float, strength: float) -> Float:
        """Return the weights that err least on x~ against the original ones on x.

        Args:
            wanted: Original weights. Shape [features, inputs].
            held: Weights that they are held to. Shape [features, inputs left].
            strength: How strongly, as a share of an input's second moment.

        Returns:
            Shape [features, inputs left].
        """
        diagonal = np.diag(self.gram)
        more = strength * diagonal + 1e-10 * diagonal.max(initial=0.0) + 1e-30
        asked = self.cross @ wanted.T + more[:, None] * held.T
        return np.asarray(np.linalg.solve(self.gram + np.diag(more), asked).T)

    def error(self, weight: Float, wanted: Float) -> float:
        """Return the squared error of weights on x~ against the original ones on x, but for what no weight changes.

        Args:
            weight: Shape [features, inputs left].
            wanted: Original weights. Shape [features, inputs].
        """
        return float(np.sum((weight @ self.gram - 2 * wanted @ self.cross.T) * weight))


Halves = tuple[tuple[PairMoments, PairMoments], ...]
"""Moments over two halves of the samples, one part if there are no two: over positions, and over samples' means."""


def refit(halves: Halves, wanted: NDArray[Any], held: NDArray[Any], *, shifts: bool) -> tuple[Float, Float]:
    """Fit a layer's weights to what the inputs that are left tell of all.

    They are held to what they were as strongly as the means of samples ask for that they were not fitted to: layers
    behind average over positions, so that what averages out does no harm, and what does not, like shrinking, does.

    Args:
        halves: Moments of what the layer reads.
        wanted: Original weights, of the features that are left. Shape [features, inputs].
        held: Of those, the columns that are left. Shape [features, inputs left].
        shifts: Whether a constant may be added to each feature.

    Returns:
        Weights, shape [features, inputs left], and constants, shape [features].
    """
    wide, kept = wanted.astype(np.float64), held.astype(np.float64)
    parts = [[each.centered if shifts else each for each in half] for half in halves]
    strength = _strength(parts, wide, kept) if len(parts) == 2 else STRENGTHS[-1]
    whole = functools.reduce(PairMoments.merge, [rows for rows, _ in halves])
    best = kept if strength is None else (whole.centered if shifts else whole).fit(wide, kept, strength)
    mean, original_mean = whole.means
    constants = wide @ original_mean - best @ mean
    return best, constants if shifts else np.zeros(len(best))


def _strength(halves: Sequence[Sequence[PairMoments]], wanted: Float, held: Float) -> float | None:
    """Return how strongly weights are held, the weakest before errors rise; None if they are better left alone."""

    def error(strength: float | None) -> float:
        fits = [held if strength is None else rows.fit(wanted, held, strength) for rows, _ in halves]
        return sum(means.error(fit, wanted) for (_, means), fit in zip(halves, reversed(fits), strict=True))

    best, before = None, error(None)
    least = before
    for candidate in reversed(STRENGTHS):
        found = error(candidate)
        if found > least:
            break  # weaker ones err more still
        best, least = candidate, found
    return best if before - least > WORTH * abs(before) else None
