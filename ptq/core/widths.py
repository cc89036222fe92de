"""Word lengths of single weights: some rows, or some columns, of a layer have longer words than the rest.

All words of a row share one scale, and a longer word has more levels at the same step. Whatever a method calls its
choice, rows that matter, taps that reach far, channels that can be dropped, it comes down to bits per weight.

Sources:
    Multipoint: Liu, Ye, Zhou, Liu, "Post-training quantization with multiple points" (AAAI 2021): sums of n points of
    b bits in some rows. Coarse & fine weight splitting: sums of two points at the center taps of re-parameterized
    convolutions. Each point 2^b times finer than the one before, such a sum is one integer of n b bits: among all sums
    of n points the one whose values lie evenly. With 8-bit inputs nothing is gained beyond 8 bits, which is what the
    longest word is cut to.
    Differs: the authors choose each point's scale greedily on what is left over; here the ratio is fixed and all bits
    of a weight are found at once, by any solver, on the layer's output error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 8


@dataclass(frozen=True)
class Widths:
    """Bits per weight, the larger of what its row and its column ask for.

    Attributes:
        rows: Per output feature, 0 to 8. Shape [out], int8.
        columns: Per input, likewise; 0 asks for nothing. Shape [in].
    """

    rows: NDArray[np.int8]
    columns: NDArray[np.int8]

    def merge(self, other: Widths) -> Widths:
        """The longer word of both for every row and every column."""
        return Widths(np.maximum(self.rows, other.rows), np.maximum(self.columns, other.columns))

    @staticmethod
    def in_rows(rows: NDArray[np.int8], num_columns: int) -> Widths:
        """Words as long as each row asks for."""
        return Widths(rows, np.zeros(num_columns, np.int8))

    @staticmethod
    def at_taps(shape: tuple[int, int], num_bits: int, taps: NDArray[np.bool_]) -> Widths:
        """Words twice as long, up to a byte, at some taps of a kernel.

        Args:
            shape: Rows and columns; columns run over (channel, tap).
            num_bits: Word length of the other taps.
            taps: Which of them have longer words.
        """
        columns = np.where(taps.reshape(-1), min(2 * num_bits, MAX_BITS), 0).astype(np.int8)
        return Widths(np.full(shape[0], num_bits, np.int8), np.tile(columns, shape[1] // taps.size))

    @property
    def bits(self) -> NDArray[np.int8]:
        """Bits per weight. Shape [out, in]."""
        bits: NDArray[np.int8] = np.maximum(self.rows[:, None], self.columns)
        return bits

    def extra_words(self, num_bits: int) -> int:
        """Words of a length beyond one for each weight that hold as many bits: what kernels of that length would read.

        Example:
            >>> Widths.in_rows(np.array([3, 8], np.int8), 10).extra_words(3)
            20
        """
        words = -(-self.bits // np.int8(num_bits))
        return int(np.maximum(words, 1).sum()) - words.size

    def limits(self, *, narrow_range: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest level per weight. Shapes [out, in].

        Args:
            narrow_range: Whether the most negative code is dropped at every length, not of bytes alone.

        Example:
            >>> Widths(np.array([3], np.int8), np.array([0, 6], np.int8)).limits()
            (array([[ -4., -32.]]), array([[ 3., 31.]]))
        """
        bits = self.bits.astype(np.float64)
        high = np.where(bits > 0, np.exp2(bits - 1) - 1, 0.0)
        symmetric = (bits == MAX_BITS) | (bits == 0) | narrow_range
        return np.where(symmetric, -high, -high - 1), high
