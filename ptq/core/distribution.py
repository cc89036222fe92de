"""Distribution of the values of one tensor, and the grid that was chosen for them, as a report draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import FloatArray, QuantParams
from ptq.core.encoding import WeightEncoding
from ptq.core.statistics import Histogram

BINS = 48


@dataclass(frozen=True)
class Distribution:
    """Distribution of a tensor's values in a few numbers.

    Attributes:
        rmin: Smallest value seen, real units.
        rmax: Largest value seen, real units.
        low: Real that the first code stands for; of a weight with several scales the lowest.
        high: Real that the last code stands for; of a weight with several scales the highest.
        clipped: Share of the values that lie more than half a step outside, each by its own scale.
        sqnr_db: Signal over rounding noise of the values on the grid, dB.
        shares: Shares of the values in equal bins from `rmin` to `rmax`, three digits each. Shape [48].
    """

    rmin: float
    rmax: float
    low: float
    high: float
    clipped: float
    sqnr_db: float
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.shares) != BINS:
            raise ValueError(f"shares has {len(self.shares)} bins; expected {BINS}")


def distribution_of_values(histogram: Histogram, params: QuantParams, sqnr_db: float) -> Distribution:
    """Summarize the values of activations on one grid.

    Args:
        histogram: Values that were seen.
        params: The grid, per tensor.
        sqnr_db: Signal over rounding noise of the values on that grid, dB.
    """
    scale, zero = float(params.scale), float(params.zero_point)
    low, high = ((code - zero) * scale for code in params.spec.limits)
    below = _below(histogram, np.array([low - scale / 2, high + scale / 2]))
    clipped = 1 - (below[1] - below[0]) if histogram.total else 0.0
    return _spread(histogram, (low, high), max(float(clipped), 0.0), sqnr_db)


def distribution_of_weight(weight: FloatArray, encoding: WeightEncoding, sqnr_db: float) -> Distribution:
    """Summarize a weight and the codes that it got.

    Args:
        weight: Float weight, before it was rounded. Shape [out, in].
        encoding: Codes and scales.
        sqnr_db: Signal over rounding noise of the weight, dB.
    """
    histogram = Histogram.of(np.asarray(weight, np.float32))
    outside = float((~encoding.covers(weight)).mean())
    return _spread(histogram, encoding.ends(), outside, sqnr_db)


def _spread(histogram: Histogram, limits: tuple[float, float], clipped: float, sqnr_db: float) -> Distribution:
    if not histogram.total:  # a value that was empty in every sample
        return Distribution(0.0, 0.0, *limits, 0.0, sqnr_db, (0.0,) * BINS)
    below = _below(histogram, np.linspace(histogram.rmin, histogram.rmax, BINS + 1)[1:-1])
    shares = np.diff(np.concatenate([[0.0], below, [1.0]]))
    return Distribution(
        histogram.rmin, histogram.rmax, *limits, clipped, sqnr_db, tuple(float(f"{x:.3g}") for x in shares)
    )


def _below(histogram: Histogram, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the values up to each point, even within a piece."""
    lower, upper, counts = histogram.pieces
    after = np.cumsum(counts)
    ends, shares = np.c_[lower, upper].ravel(), np.c_[after - counts, after].ravel() / max(histogram.total, 1)
    return np.interp(points, ends, shares) if len(ends) else np.zeros(len(points))
