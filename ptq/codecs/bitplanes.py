"""Packing of codes of any word length into bytes that are full.

A word of b bits is cut into planes of 8, 4, 2 and 1 bits, the binary digits of b; each plane fills bytes on its own, so
that no field crosses a byte. Packed words are codes + 2^(b-1): what is read back is the sum of its fields, of which the
topmost alone has a sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import IntArray

BYTE = 8


def pack(codes: IntArray, num_bits: int) -> NDArray[np.uint8]:
    """Pack signed codes into full bytes.

    Args:
        codes: Integers within -2^(b-1) .. 2^(b-1) - 1. Any shape, taken in C order.
        num_bits: Word length b, 1 to 8.

    Returns:
        The planes, widest first, each with its own padding of less than a byte. Shape [about size * b / 8].

    Raises:
        ValueError: A code does not fit, or there are no words of that length.
    """
    _check(codes, num_bits)
    words = (codes.reshape(-1).astype(np.int16) + (1 << (num_bits - 1))).astype(np.uint8)
    return np.concatenate([_filled(words, width, shift) for width, shift in planes(num_bits)])


def unpack(packed: NDArray[np.uint8], num_bits: int, count: int) -> NDArray[np.int8]:
    """Unpack what `pack` made, by the tables that graphs use.

    Args:
        packed: Bytes that `pack` made.
        num_bits: Word length b, 1 to 8.
        count: Number of codes.

    Returns:
        Codes. Shape [count].
    """
    codes, start = np.zeros(count, np.int8), 0
    for width, shift in planes(num_bits):
        stop = start + -(-count // (BYTE // width))
        fields = np.arange(1 << BYTE)[:, None] // field_divisors(width) % (1 << width)
        codes |= field_values(width, shift, num_bits)[fields][packed[start:stop]].reshape(-1)[:count]
        start = stop
    return codes


def planes(num_bits: int) -> list[tuple[int, int]]:
    """Return width and place of each plane: binary digits of the word length, widest first and lowest in the word."""
    found, shift = [], 0
    for width in (8, 4, 2, 1):
        if num_bits & width:
            found.append((width, shift))
            shift += width
    return found


def field_divisors(width: int) -> NDArray[np.int32]:
    """Return the divisors that move each field of a byte to its low end. Shape [8 / width]."""
    return np.left_shift(1, np.arange(0, BYTE, width, dtype=np.int32), dtype=np.int32)


def field_values(width: int, shift: int, num_bits: int) -> NDArray[np.int8]:
    """Return what each field adds to its code. Shape [2^width]."""
    lowest = 1 << (width - 1) if width + shift == num_bits else 0
    return ((np.arange(1 << width) - lowest) << shift).astype(np.int8)


def _check(codes: IntArray, num_bits: int) -> None:
    if not 0 < num_bits <= BYTE:
        raise ValueError(f"codes of {num_bits} bits are not packed; those of 1 to {BYTE} are")
    half = 1 << (num_bits - 1)
    if codes.size and not (codes.min() >= -half and codes.max() < half):
        raise ValueError(f"codes {codes.min()} .. {codes.max()} do not fit into {num_bits} bits")


def _filled(words: NDArray[np.uint8], width: int, shift: int) -> NDArray[np.uint8]:
    """Pack one plane of the words, the first field lowest in its byte."""
    per_byte = BYTE // width
    fields = words >> np.uint8(shift) & np.uint8((1 << width) - 1)
    padded = np.pad(fields, (0, -len(fields) % per_byte)).reshape(-1, per_byte)
    filled: NDArray[np.uint8] = np.bitwise_or.reduce(padded << np.arange(0, BYTE, width, dtype=np.uint8), axis=1)
    return filled
