"""Packing of a whole weight into bytes, in any form of storage, without the graph that decodes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from ptq.codecs.bitplanes import pack, unpack
from ptq.core.encoding import LookupWeight, WeightEncoding
from ptq.core.storage import Alphabet, Storage, Words, place_bits
from ptq.core.widths import Widths

Packed = Mapping[int, NDArray[np.uint8]]
"""Word length -> all words of that length, in the order of the weights. Shape [bytes]."""


def pack_words(encoding: WeightEncoding) -> Packed:
    """Pack the words of a weight, without scales, tables and alphabets.

    Args:
        encoding: Weight in any form of storage.

    Returns:
        Bytes. `size_in_bits` counts them, but for padding of less than a byte per plane.
    """
    if isinstance(encoding, LookupWeight):
        return {encoding.num_bits: _pack_places(encoding.indices, encoding.num_bits)}
    codes = encoding.codes
    match encoding.storage:
        case Words(lengths):
            if isinstance(lengths, Widths):
                return {bits: pack(codes[lengths.bits == bits], bits) for bits in _lengths(lengths)}
            return {lengths: pack(codes, lengths)}
        case Alphabet() as alphabet:
            return {alphabet.num_bits: _pack_places(alphabet.places(codes), alphabet.num_bits)}
        case never:
            assert_never(never)


def unpack_words(packed: Packed, storage: Storage, shape: tuple[int, int]) -> NDArray[np.int8]:
    """Unpack the codes of a weight of integers.

    Args:
        packed: Bytes that `pack_words` made.
        storage: Storage of the codes.
        shape: Output features and inputs.
    """
    match storage:
        case Words(lengths):
            if not isinstance(lengths, Widths):
                return unpack(packed[lengths], lengths, shape[0] * shape[1]).reshape(shape)
            codes = np.zeros(shape, np.int8)
            for bits in _lengths(lengths):
                chosen = lengths.bits == bits
                codes[chosen] = unpack(packed[bits], bits, int(chosen.sum()))
            return codes
        case Alphabet(levels):
            return levels[unpack_places(packed, len(levels), shape)]
        case never:
            assert_never(never)


def unpack_places(packed: Packed, count: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Unpack places in a table, or an alphabet, of so many entries."""
    bits = place_bits(count)
    words = unpack(packed[bits], bits, shape[0] * shape[1]).astype(np.int16)
    return (words + (1 << (bits - 1))).astype(np.uint8).reshape(shape)


def _pack_places(places: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return pack((places.astype(np.int16) - (1 << (bits - 1))).astype(np.int8), bits)


def _lengths(widths: Widths) -> list[int]:
    """Return the word lengths of all weights that are stored at all."""
    return [int(bits) for bits in np.unique(widths.bits) if bits]
