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
    """Bits of each weight, the larger of those that its row and its column ask for.

    Attributes:
        rows: Bits for each output feature, 0 to 8. Shape [out], int8.
        columns: Bits for each input, 0 to 8; 0 asks for nothing. Shape [in], int8.
    """

    rows: NDArray[np.int8]
    columns: NDArray[np.int8]

    def merge(self, other: Widths) -> Widths:
        """Take the longer word of both for every row and every column."""
        return Widths(np.maximum(self.rows, other.rows), np.maximum(self.columns, other.columns))

    @staticmethod
    def in_rows(rows: NDArray[np.int8], num_columns: int) -> Widths:
        """Make words as long as each row asks for."""
        return Widths(rows, np.zeros(num_columns, np.int8))

    @staticmethod
    def at_taps(shape: tuple[int, int], num_bits: int, taps: NDArray[np.bool_]) -> Widths:
        """Make words twice as long, up to a byte, at some taps of a kernel.

        Args:
            shape: Rows and columns; columns run over (channel, tap).
            num_bits: Word length of the other taps.
            taps: Mask of the taps with longer words. Shape [taps].
        """
        columns = np.where(taps.reshape(-1), min(2 * num_bits, MAX_BITS), 0).astype(np.int8)
        return Widths(np.full(shape[0], num_bits, np.int8), np.tile(columns, shape[1] // taps.size))

    @property
    def bits(self) -> NDArray[np.int8]:
        """Bits of each weight. Shape [out, in]."""
        bits: NDArray[np.int8] = np.maximum(self.rows[:, None], self.columns)
        return bits

    def extra_words(self, num_bits: int) -> int:
        """Count the words of a length, beyond one per weight, that hold as many bits: what kernels of that length add.

        Example:
            >>> Widths.in_rows(np.array([3, 8], np.int8), 10).extra_words(3)
            20
        """
        words = -(-self.bits // np.int8(num_bits))
        return int(np.maximum(words, 1).sum()) - words.size

    def limits(self, *, narrow_range: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the smallest and the largest level of each weight. Shapes [out, in].

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
