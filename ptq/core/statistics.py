"""Histogram of one tensor whose merge is exact, whatever the order or the split of the data.

Bins follow the bit pattern of float32: sign, exponent and the first eight mantissa bits. The grid does not depend on
the data, so no range has to be known first, two histograms add bin by bin, and addition of integers is associative
and commutative: any chunking gives the same bytes. A bin is at most 0.4 % of its value wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 8
SHIFT = 23 - MANTISSA_BITS
MAGNITUDES = 1 << (8 + MANTISSA_BITS)  # bins of one sign
OCTAVE = 1 << MANTISSA_BITS  # bins per factor of two
PIECE = 1 << 22  # values counted at once; numpy needs eight bytes for each meanwhile
COARSE = 8  # neighbors that `density` joins far below the largest magnitude


class Density(NamedTuple):
    """A piecewise flat density. All arrays have shape [pieces], ascend, and are float64.

    Attributes:
        lower: Where each piece starts, real units.
        upper: Where it ends; equal to `lower` for a value that is known exactly.
        counts: How many values lie in it.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Counts of the values of one tensor on the bit-pattern grid.

    Attributes:
        bins: Which bins were hit, ascending: 0 is zero, +k and -k mirror each other, int64. Shape [bins].
        counts: How many values fell into each, int64, > 0. Shape [bins].
        rmin: Smallest value seen, exact, real units.
        rmax: Largest value seen, exact, real units.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    rmin: float
    rmax: float

    @staticmethod
    def of(values: NDArray[np.float32]) -> Histogram:
        """Count an array of finite values.

        Example:
            >>> h = Histogram.of(np.array([0.0, 0.0, 1.0, -2.0], np.float32))
            >>> h.total, h.rmin, h.rmax, h.zeros
            (4, -2.0, 1.0, 2)
        """
        accumulator = HistogramAccumulator()
        accumulator.update(values)
        return accumulator.value()

    @property
    def total(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """Number of values that are zero, or too close to it for a normal float32."""
        return int(self.counts[self.bins == 0].sum())

    def merge(self, other: Histogram) -> Histogram:
        """Add two histograms. Exact, associative and commutative."""
        bins, slots = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, slots, np.concatenate([self.counts, other.counts]))
        return Histogram(bins, counts, min(self.rmin, other.rmin), max(self.rmax, other.rmax))

    def raised(self, low: float) -> Histogram:
        """Return the histogram of max(x, low) for a `low` below 0, exact but for values in the bin of `low`.

        Example:
            >>> h = Histogram.of(np.array([-5.0, -2.0, 1.0], np.float32)).raised(-3.0)
            >>> h.total, h.rmin, len(h.bins)
            (3, -3.0, 3)
        """
        if self.rmin >= low:
            return self
        place = Histogram.of(np.array([low], np.float32)).bins[0]
        below = self.bins < place
        count = self.counts[below].sum() + self.counts[self.bins == place].sum()
        bins = np.concatenate([[place], self.bins[self.bins > place]])
        counts = np.concatenate([[count], self.counts[self.bins > place]])
        return Histogram(bins, counts, low, max(self.rmax, low))

    @cached_property
    def pieces(self) -> Density:
        """Density at full resolution."""
        return self._density(self.bins, self.counts, 1)

    @cached_property
    def density(self) -> Density:
        """Density with fewer pieces where bins are far finer than any 8-bit step over the whole range."""
        magnitude = np.abs(self.bins)
        fine = magnitude >= (magnitude.max(initial=0) - 4 * OCTAVE) // COARSE * COARSE
        joined = np.sign(self.bins) * (magnitude // COARSE * COARSE)
        parts = [
            self._joined(self.bins[fine], self.counts[fine], 1),
            self._joined(joined[~fine], self.counts[~fine], COARSE),
        ]
        order = np.argsort(np.concatenate([part.lower for part in parts]), kind="stable")
        return Density(*(np.concatenate(columns)[order] for columns in zip(*parts, strict=True)))

    def quantile(self, mass: float) -> float:
        """Value below which the fraction `mass` of the data lies, linear within a bin."""
        pieces = self.pieces
        cumulative = np.cumsum(pieces.counts) / self.total
        index = min(int(np.searchsorted(cumulative, mass)), len(cumulative) - 1)
        before = cumulative[index - 1] if index else 0.0
        share = min(max((mass - before) / (cumulative[index] - before), 0.0), 1.0)
        return float(pieces.lower[index] + share * (pieces.upper[index] - pieces.lower[index]))

    def linear(self, num_bins: int) -> NDArray[np.float64]:
        """Counts of |x| on equal bins over (0, max |x|], exact zeros left out.

        Args:
            num_bins: Number of equal bins.

        Returns:
            Counts, float64 because a bit-pattern bin may straddle an edge. Shape [num_bins].
        """
        edges = np.linspace(0.0, max(-self.rmin, self.rmax), num_bins + 1)
        result = np.zeros(num_bins)
        for negative in (False, True):
            chosen = self.bins < 0 if negative else self.bins > 0
            low, high, counts = (column[chosen] for column in self.pieces)
            if negative:
                low, high, counts = -high[::-1], -low[::-1], counts[::-1]
            if len(counts):
                after = np.cumsum(counts)
                result += np.diff(np.interp(edges, np.c_[low, high].ravel(), np.c_[after - counts, after].ravel()))
        return result

    def _joined(self, bins: NDArray[np.int64], counts: NDArray[np.int64], width: int) -> Density:
        unique, starts = np.unique(bins, return_index=True)
        summed = np.add.reduceat(counts, starts) if len(starts) else counts
        return self._density(unique, summed, width)

    def _density(self, bins: NDArray[np.int64], counts: NDArray[np.int64], width: int) -> Density:
        magnitude = np.abs(bins)
        inner, outer = _edge(magnitude), np.where(bins == 0, 0.0, _edge(magnitude + width))
        lower = np.where(bins < 0, -outer, inner)
        upper = np.where(bins < 0, -inner, outer)
        return Density(
            np.clip(lower, self.rmin, self.rmax), np.clip(upper, self.rmin, self.rmax), counts.astype(np.float64)
        )


class HistogramAccumulator:
    """A mutable builder of a `Histogram`: dense counts, updated in place, read once at the end."""

    def __init__(self) -> None:
        self._counts = np.zeros(MAGNITUDES, np.int64)  # grows to both signs with the first negative value
        self._rmin, self._rmax = np.inf, -np.inf

    def update(self, values: NDArray[np.float32]) -> None:
        """Count an array of finite values of any shape.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        if not values.size:
            return
        rmin, rmax = float(values.min()) + 0.0, float(values.max()) + 0.0  # -0.0 and 0.0 are one value
        if not (np.isfinite(rmin) and np.isfinite(rmax)):
            raise ValueError("values are not finite")
        bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
        for start in range(0, len(bits), PIECE):
            counts = np.bincount(bits[start : start + PIECE] >> SHIFT, minlength=len(self._counts))
            if len(counts) > len(self._counts):
                self._counts = np.concatenate([self._counts, np.zeros(MAGNITUDES, np.int64)])
            self._counts[: len(counts)] += counts
        self._rmin, self._rmax = min(self._rmin, rmin), max(self._rmax, rmax)

    def value(self) -> Histogram:
        """Return the histogram of all values so far."""
        counts = self._counts.copy()
        if len(counts) > MAGNITUDES:  # -0.0 and negative denormals are zeros too
            counts[0] += counts[MAGNITUDES]
            counts[MAGNITUDES] = 0
        codes = np.flatnonzero(counts)
        bins = np.where(codes < MAGNITUDES, codes, MAGNITUDES - codes)
        order = np.argsort(bins)
        return Histogram(bins[order], counts[codes][order], float(self._rmin), float(self._rmax))


def _edge(magnitude: NDArray[np.int64]) -> NDArray[np.float64]:
    """Magnitude at which a bin starts, real units; the first bin (zero and denormals) starts at 0."""
    bits = np.asarray(magnitude, np.uint32) << SHIFT
    return bits.view(np.float32).astype(np.float64)
