"""How the integers of a weight lie in a file: as words, or by their place in a short list of levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import IntArray
from ptq.core.widths import Widths

MOST_LEVELS = 256


@dataclass(frozen=True)
class Words:
    """Storage as words of two's complement.

    Attributes:
        lengths: Bits per word, one number for all weights, or one for each.
    """

    lengths: int | Widths

    def size_in_bits(self, shape: Sequence[int]) -> int:
        """Count the bits that all words of a weight take."""
        if isinstance(self.lengths, Widths):
            return int(self.lengths.bits.sum(dtype=np.int64))
        return int(np.prod(shape)) * self.lengths


@dataclass(frozen=True)
class Alphabet:
    """Storage as places in a list of levels, which kernels multiply as bytes all the same.

    Attributes:
        levels: Levels that a weight may have, ascending. Shape [at most 256], int8.
    """

    levels: NDArray[np.int8]

    def __post_init__(self) -> None:
        if not 0 < len(self.levels) <= MOST_LEVELS or (np.diff(self.levels.astype(np.int16)) <= 0).any():
            raise ValueError(f"levels are {self.levels[:8].tolist()} ...; expected 1 to {MOST_LEVELS}, ascending")

    @property
    def num_bits(self) -> int:
        """Word length of a place, bits."""
        return place_bits(len(self.levels))

    def size_in_bits(self, shape: Sequence[int]) -> int:
        """Count the bits that the places take, and the list."""
        return int(np.prod(shape)) * self.num_bits + 8 * len(self.levels)

    def places(self, codes: IntArray) -> NDArray[np.uint8]:
        """Find where each code stands in the list. Shape of `codes`."""
        return np.searchsorted(self.levels, codes).astype(np.uint8)


Storage = Words | Alphabet
"""Every way to store the integers of a weight. Closed: lowering and codecs match on this union."""


def place_bits(count: int) -> int:
    """Return the number of bits that tell so many things apart, at least 1."""
    return max((count - 1).bit_length(), 1)
