"""Weights as sums: how many points of the layer's word length make up each weight.

A sum of n points of b bits, each 2^b times finer than the one before, is one integer of n b bits on the finest grid:
among all sums of n such points the one whose values lie evenly. With 8-bit inputs nothing is gained beyond 8 bits,
which is what the longest sum is cut to; so every sum fits the integer weight that kernels multiply with.

Sources:
    Multipoint: Liu, Ye, Zhou, Liu, "Post-training quantization with multiple points" (AAAI 2021): more points in some
    rows. Coarse & fine weight splitting: two points at the centre taps of re-parameterised convolutions.
    Differs: the authors choose each point's scale greedily on what is left over; here the ratio is fixed and codes of
    all points are found at once, by any solver, on the layer's output error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.spec import QuantSpec

MAX_BITS = 8


@dataclass(frozen=True)
class Points:
    """Number of points, the larger of what a weight's row and its column ask for.

    Attributes:
        rows: Per output feature, >= 1. Shape [out].
        columns: Per input, >= 1. Shape [in].
    """

    rows: NDArray[np.int8]
    columns: NDArray[np.int8]

    def merge(self, other: Points) -> Points:
        """What either asks for."""
        return Points(np.maximum(self.rows, other.rows), np.maximum(self.columns, other.columns))

    @staticmethod
    def in_rows(rows: NDArray[np.int8], num_columns: int) -> Points:
        """As many points as each row asks for."""
        return Points(rows, np.ones(num_columns, np.int8))

    @staticmethod
    def at_taps(num_rows: int, num_columns: int, taps: NDArray[np.bool_]) -> Points:
        """Two points where a kernel's tap says so; columns run over (channel, tap)."""
        columns = np.tile(1 + taps.reshape(-1).astype(np.int8), num_columns // taps.size)
        return Points(np.ones(num_rows, np.int8), columns)

    @property
    def extra(self) -> int:
        """Products beyond one per weight, for every position of the output."""
        return int(self.counts.sum()) - self.counts.size

    @property
    def counts(self) -> NDArray[np.int8]:
        """Points per weight. Shape [out, in]."""
        counts: NDArray[np.int8] = np.maximum(self.rows[:, None], self.columns)
        return counts

    def word_lengths(self, num_bits: int) -> NDArray[np.int8]:
        """Bits per weight. Shape [out, in]."""
        lengths: NDArray[np.int8] = np.minimum(self.counts * num_bits, MAX_BITS).astype(np.int8)
        return lengths

    def limits(self, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest level per weight. Shapes [out, in].

        Example:
            >>> points = Points(np.array([1], np.int8), np.array([1, 2], np.int8))
            >>> points.limits(QuantSpec(3, signed=True, symmetric=True))
            (array([[ -4., -32.]]), array([[ 3., 31.]]))
        """
        bits = self.word_lengths(spec.num_bits).astype(np.float64)
        high = np.exp2(bits - 1) - 1
        low = np.where((bits == MAX_BITS) | spec.narrow_range, -high, -high - 1)
        return low, high
