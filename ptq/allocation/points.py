"""Word lengths of sums of points: several words of a kernel's own length, each that much finer than the one before."""

from __future__ import annotations

from ptq.core.widths import MAX_BITS


def point_bits(num_bits: int) -> tuple[int, ...]:
    """Return the bits of one, two, ... points of a word length, until a byte is full.

    Args:
        num_bits: Word length of a point, 2 to 8.

    Example:
        >>> point_bits(3)
        (3, 6, 9)
    """
    return tuple(num_bits * points for points in range(1, -(-MAX_BITS // num_bits) + 1))


ALL_POINTS = tuple(sorted({bits for num_bits in range(2, MAX_BITS + 1) for bits in point_bits(num_bits)}))
"""Bits that points of any word length have together."""
