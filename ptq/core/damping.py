"""Damping of a layer that undoes errors of the layers before it, judged on samples that it was not fitted to.

Weights that minimize the error against the float output, given the quantized input, also fit the noise of the rows
that they were computed from, and shrink the signal wherever rounding noise sits on top of it. Damping holds every
weight to its float value: with D the diagonal of H, H and G become H + s D and G + s D. The strength s is judged by
the mean output of each sample: later layers average over positions, so that what averages out does no harm, and what
does not, like shrinking, does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptq.core.layer_statistics import LayerStatistics, add_diagonal

Float = NDArray[np.float64]

STRENGTHS = (0.001, 0.01, 0.1, 1.0, np.inf)
"""Candidates; infinity asks for the float weight on the quantized input and leaves earlier errors alone."""

CAUTIOUS = 1.0
"""Strength where there is nothing to judge by."""

JUDGED = 128
"""Outputs of a group that the strength is judged by."""


@dataclass(frozen=True)
class LayerMoments:
    """Moments of a layer's input over the two halves of a calibration set; one part only if it cannot be halved.

    Attributes:
        rows: Over positions, per half.
        pooled: Over the mean row of each sample, per half.
    """

    rows: tuple[LayerStatistics, ...]
    pooled: tuple[LayerStatistics, ...]

    @functools.cached_property
    def whole(self) -> LayerStatistics:
        """Moments over all positions of both halves."""
        return functools.reduce(LayerStatistics.merge, self.rows)

    def centered(self, weight: NDArray[np.float32]) -> LayerMoments:
        """Return the moments about the means, see `LayerStatistics.centered`."""
        halves: Sequence[tuple[LayerStatistics, ...]] = (self.rows, self.pooled)
        return LayerMoments(*(tuple(half.centered(weight) for half in each) for each in halves))

    def damped(self, weight: NDArray[np.float32]) -> LayerStatistics:
        """Return the moments over all positions, damped as strongly as unseen samples ask for.

        Args:
            weight: Float weight. Shape [groups * out, in].
        """
        return damped(self.whole, choose_damping(self, weight) if len(self.rows) == 2 else CAUTIOUS)


def damped(statistics: LayerStatistics, strength: float) -> LayerStatistics:
    """Return moments that hold each weight to its float value.

    Args:
        statistics: Moments of a layer's input.
        strength: Share of the diagonal that is added to both moments.
    """
    if statistics.matched:
        return statistics
    return replace(statistics, cross=statistics.gram) if np.isinf(strength) else add_damping(statistics, strength)


def add_damping(statistics: LayerStatistics, share: float) -> LayerStatistics:
    """Add a share of the diagonal: correlations between inputs count for less, float weights for more.

    Args:
        statistics: Moments of a layer's input.
        share: Of the diagonal.
    """
    more = share * np.einsum("gii->gi", statistics.gram)
    gram = add_diagonal(statistics.gram, more)
    return replace(statistics, gram=gram, cross=gram if statistics.matched else add_diagonal(statistics.cross, more))


def choose_damping(moments: LayerMoments, weight: NDArray[np.float32]) -> float:
    """Choose the strength whose weights, fitted to one half of the samples, err least on mean outputs of the other.

    Args:
        moments: Over two halves.
        weight: Float weight. Shape [groups * out, in].

    Returns:
        One of `STRENGTHS`: the weakest before the error rises.

    Cost:
        Solves 2 systems of in^2 per finite strength and group.
    """
    if moments.whole.matched:
        return np.inf
    judged, weight = some_outputs(moments, weight)
    (first, second), (first_pooled, second_pooled) = judged.rows, judged.pooled
    turns = [
        (half, half.target_correlation(weight), other, other.target_correlation(weight))
        for half, other in ((first, second_pooled), (second, first_pooled))
    ]
    best, least = np.inf, np.inf
    for strength in reversed(STRENGTHS):
        error = sum(
            other.relative_error(_fit(half, target_correlation, weight, strength), asked)
            for half, target_correlation, other, asked in turns
        )
        if error > least:
            break  # weaker ones err more still, and cost the most
        best, least = strength, error
    return best


def some_outputs(moments: LayerMoments, weight: NDArray[np.float32]) -> tuple[LayerMoments, NDArray[np.float32]]:
    """Keep at most `JUDGED` output features of each group, evenly spread, in the moments and in the weight."""
    groups = len(moments.rows[0].gram)
    by_group = weight.reshape(groups, -1, weight.shape[-1])
    step = -(-by_group.shape[1] // JUDGED)
    halves: Sequence[tuple[LayerStatistics, ...]] = (moments.rows, moments.pooled)
    fewer = (tuple(replace(half, energy=half.energy[:, ::step]) for half in each) for each in halves)
    return LayerMoments(*fewer), by_group[:, ::step].reshape(-1, weight.shape[-1])


def _fit(statistics: LayerStatistics, target_correlation: Float, weight: NDArray[np.float32], strength: float) -> Float:
    """Solve for the real weights of least damped error. Shape of `target_correlation`."""
    by_group = weight.reshape(target_correlation.shape).astype(np.float64)
    if np.isinf(strength):
        return by_group
    diagonal = np.einsum("gii->gi", statistics.gram)
    more = strength * diagonal
    more = more + 1e-10 * (diagonal + more).max(-1)[:, None] + 1e-30
    asked = (target_correlation + more[:, None] * by_group).transpose(0, 2, 1)
    return np.linalg.solve(add_diagonal(statistics.gram, more), asked).transpose(0, 2, 1)
