"""The mean of each channel of a tensor over a data set, summed exactly: any order or split gives the same bits.

A float32 is an integer times a power of two. Summing the integers of equal power in 64 bits never rounds, so the
total does not depend on the order. Powers are grouped sixteen at a time to keep the table small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MANTISSA = 24  # bits of a float32's integer
LOWEST = -149 + MANTISSA  # frexp exponent of the smallest denormal, shifted so that integers result
GROUP = 16  # powers of two per row: 24 + 15 bits leave room for 2^24 samples in 64
ROWS = (128 - LOWEST + MANTISSA) // GROUP + 1


@dataclass(frozen=True)
class ChannelMean:
    """An exact sum per channel, and the number of samples in it.

    Attributes:
        table: Integer sums, one row per group of powers of two, int64. Shape [rows, channels].
        count: Number of samples added.
    """

    table: NDArray[np.int64]
    count: int

    @staticmethod
    def of(values: NDArray[np.float32], axis: int) -> ChannelMean:
        """Compute the channel means of one sample, each rounded to float32 once.

        Args:
            values: One sample's tensor, finite.
            axis: The channel axis.

        Example:
            >>> ChannelMean.of(np.array([[1.0, 3.0], [4.0, 4.0]], np.float32), axis=0).mean
            array([2., 4.])
        """
        rest = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        means = values.mean(axis=rest, dtype=np.float64).astype(np.float32).reshape(-1)
        mantissa, exponent = np.frexp(means.astype(np.float64))
        integers = np.ldexp(mantissa, MANTISSA).astype(np.int64)
        row, shift = np.divmod(np.where(integers == 0, 0, exponent - LOWEST + MANTISSA), GROUP)
        table = np.zeros((ROWS, len(means)), np.int64)
        table[row, np.arange(len(means))] = integers << shift
        return ChannelMean(table, 1)

    def merge(self, other: ChannelMean) -> ChannelMean:
        """Add two sums. Exact, associative and commutative."""
        return ChannelMean(self.table + other.table, self.count + other.count)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean per channel over the samples, real units. Shape [channels]."""
        powers = np.ldexp(1.0, np.arange(ROWS) * GROUP + LOWEST - 2 * MANTISSA)
        return np.asarray(powers @ self.table.astype(np.float64) / max(self.count, 1))
