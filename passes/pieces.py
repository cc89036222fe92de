"""Weights of several word lengths, cut into tensors of one length each and joined again when the session opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.encoding import SumEncoding
from ptq.core.matrix import WeightLayout


@dataclass(frozen=True)
class Piece:
    """Codes of one word length.

    Attributes:
        codes: A part of the weight tensor: whole output features, or [features, channels, taps] of a kernel.
        num_bits: Word length.
    """

    codes: NDArray[Any]
    num_bits: int


@dataclass(frozen=True)
class Block:
    """Output features that are cut alike.

    Attributes:
        rows: Which features, ascending.
        pieces: One, or several to be joined along their last axis.
        shape: Of their part of the weight tensor.
    """

    rows: NDArray[np.intp]
    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]


def cut(encoding: SumEncoding, layout: WeightLayout) -> tuple[Block, ...]:
    """Cut a weight along its output features, and those along the taps of their kernel, by word length.

    Args:
        encoding: The weight; its columns differ by tap at most.
        layout: How the graph stores the weight.

    Returns:
        Blocks; every feature is in one of them.
    """
    widths = encoding.widths
    blocks = []
    for width in np.unique(widths.rows):
        rows = np.flatnonzero(widths.rows == width)
        shape = tuple(len(rows) if axis == layout.out_axis else n for axis, n in enumerate(layout.shape))
        codes, bits = encoding.codes[rows], np.maximum(width, widths.columns)
        part = WeightLayout(layout.out_axis, shape)
        if len(set(bits.tolist())) == 1:
            pieces: tuple[Piece, ...] = (Piece(part.to_tensor(codes), int(bits[0])),)
        else:
            pieces = _by_tap(codes, bits, int(np.prod(layout.shape[2:])))
        blocks.append(Block(rows, pieces, shape))
    return tuple(blocks)


def _by_tap(codes: NDArray[Any], bits: NDArray[np.int8], taps: int) -> tuple[Piece, ...]:
    """Neighbouring taps of one length together."""
    kernel, by_tap = codes.reshape(len(codes), -1, taps), bits[:taps]
    ends = [*np.flatnonzero(np.diff(by_tap)) + 1, taps]
    starts = [0, *ends[:-1]]
    return tuple(
        Piece(np.ascontiguousarray(kernel[..., a:b]), int(by_tap[a])) for a, b in zip(starts, ends, strict=True)
    )
