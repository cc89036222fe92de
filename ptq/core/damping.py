"""Damping of a layer that undoes errors of the layers before it, judged on samples that it was not fitted to.

Weights that minimize the error against the float output, given the quantized input, also fit the noise of the rows
that they were computed from, and shrink the signal wherever rounding noise sits on top of it. Damping holds every
weight to its float value: with D the diagonal of H, H and G become H + s D and G + s D. The strength s is judged by
the mean output of each sample: later layers average over positions, so that what averages out does no harm, and what
does not, like shrinking, does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.core.layer_statistics import LayerStatistics, MomentSum, add_diagonal
from ptq.core.sample_means import SampleMeans

STRENGTHS = (0.001, 0.01, 0.1, 1.0, np.inf)
"""Candidates; infinity asks for the float weight on the quantized input and leaves earlier errors alone."""

CAUTIOUS = 1.0
"""Strength where there is nothing to judge by."""

JUDGED = 128
"""Outputs of a group that the strength is judged by."""


Pooled = LayerStatistics | SampleMeans
"""Mean rows of samples: their moments where a layer has few inputs, themselves where they are fewer."""


@dataclass
class LayerMoments:
    """Moments of a layer's input over the two halves of a calibration set; one part only if it cannot be halved.

    Their matrices are what takes memory: `center` and `hold` work on them in place, and whoever holds them has them.

    Attributes:
        rows: Over positions, per half; nothing any more once `hold` has taken them.
        pooled: Over the mean row of each sample, per half.
    """

    rows: tuple[LayerStatistics, ...]
    pooled: tuple[Pooled, ...]

    @property
    def count(self) -> int:
        """Number of positions that the moments are sums over."""
        return sum(half.count for half in self.rows)

    def means(self) -> tuple[Float, Float]:
        """Return the mean rows of the quantized and of the float network. Shapes [groups, in]."""
        count = max(self.count, 1)
        total = functools.reduce(np.add, [half.total for half in self.rows])
        float_total = functools.reduce(np.add, [half.float_total for half in self.rows])
        return total / count, float_total / count

    def center(self, weight: NDArray[np.float32]) -> None:
        """Take the means off the moments, see `LayerStatistics.centered`."""
        self.rows = tuple(half.centered(weight) for half in self.rows)
        self.pooled = tuple(half.centered(weight) for half in self.pooled)

    def strength(self, weight: NDArray[np.float32]) -> float:
        """Return how strongly unseen samples ask to hold weights to their float values, one of `STRENGTHS`.

        Args:
            weight: Float weight. Shape [groups * out, in].
        """
        return choose_damping(self, weight) if len(self.rows) == 2 else CAUTIOUS

    def whole(self) -> LayerStatistics:
        """Take the moments over all positions out of this: the halves are no more."""
        whole = MomentSum()
        for half in self.rows:
            whole.add(half)
        self.rows, self.pooled = (), ()
        return whole.value()


@dataclass(frozen=True)
class HeldMoments:
    """Moments of a layer's input, and how strongly they hold each weight to its float value.

    Damping changes nothing but diagonals, so both forms share their matrices: `damped` and `plain` each write the
    diagonals that they are known by, and what the other one gave is not to be looked at after that.

    Attributes:
        asked: What the output asks of each weight, undamped, see `LayerStatistics.target_correlation`.
    """

    asked: Float
    _whole: LayerStatistics
    _diagonals: tuple[Float, Float]
    _strength: float
    _share: float

    @staticmethod
    def of(whole: LayerStatistics, weight: NDArray[np.float32], strength: float, share: float = 0.0) -> HeldMoments:
        """Hold weights to their float values.

        Args:
            whole: Moments of a layer's input; its matrices are written to from now on.
            weight: Float weight. Shape [groups * out, in].
            strength: Share of the diagonal that is added to both moments, where the networks differ; infinity asks for
                the float weight.
            share: Share of the diagonal, that included, that is added besides: correlations between inputs count for
                less, float weights for more.
        """
        gram, cross = (np.einsum("gii->gi", each).copy() for each in (whole.gram, whole.cross))
        asked = whole.target_correlation(weight)
        if np.isinf(strength):
            whole = replace(whole, cross=whole.gram)
        return HeldMoments(asked, whole, (gram, cross), strength, share)

    def plain(self) -> LayerStatistics:
        """Return the moments as they are; the cross moment is `gram` where the float weight is asked for."""
        gram, cross = self._diagonals
        return _with_diagonals(self._whole, gram, cross)

    def damped(self) -> LayerStatistics:
        """Return the moments, damped."""
        gram, cross = self._diagonals
        if not self._whole.matched:
            gram, cross = gram + self._strength * gram, cross + self._strength * gram
        return _with_diagonals(self._whole, gram + self._share * gram, cross + self._share * gram)


def _with_diagonals(statistics: LayerStatistics, gram: Float, cross: Float) -> LayerStatistics:
    """Write the diagonals of both moments, in place; that of `gram` alone where they are one."""
    if not statistics.matched:
        np.einsum("gii->gi", statistics.cross)[...] = cross
    np.einsum("gii->gi", statistics.gram)[...] = gram
    return statistics


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
    if all(half.matched for half in moments.rows):
        return np.inf
    judged, weight = some_outputs(moments, weight)
    (first, second), (first_pooled, second_pooled) = judged.rows, judged.pooled
    turns = [
        (half, half.target_correlation(weight), other.judge(weight))
        for half, other in ((first, second_pooled), (second, first_pooled))
    ]
    best, least = np.inf, np.inf
    for strength in reversed(STRENGTHS):
        error = sum(
            error_of(_fit(half, target_correlation, weight, strength)) for half, target_correlation, error_of in turns
        )
        if error > least:
            break  # weaker ones err more still, and cost the most
        best, least = strength, error
    return best


def some_outputs(moments: LayerMoments, weight: NDArray[np.float32]) -> tuple[LayerMoments, NDArray[np.float32]]:
    """Keep at most `JUDGED` output features of each group, evenly spread, in what judges and in the weight."""
    groups = len(moments.rows[0].gram)
    by_group = weight.reshape(groups, -1, weight.shape[-1])
    step = -(-by_group.shape[1] // JUDGED)
    pooled = (
        replace(half, energy=half.energy[:, ::step]) if isinstance(half, LayerStatistics) else half
        for half in moments.pooled
    )
    return LayerMoments(moments.rows, tuple(pooled)), by_group[:, ::step].reshape(-1, weight.shape[-1])


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
