"""Cutting of weights of several word lengths into tensors of one length each, joined again when the session opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.matrix import WeightLayout
from ptq.core.widths import Widths


@dataclass(frozen=True)
class Piece:
    """Part of a weight with one word length.

    Attributes:
        codes: Codes of a part of the weight tensor: whole output features, or [features, channels, taps] of a kernel.
        num_bits: Word length of the codes.
    """

    codes: NDArray[Any]
    num_bits: int


@dataclass(frozen=True)
class Block:
    """Block of output features that are cut alike.

    Attributes:
        rows: Indices of the features, ascending.
        pieces: One part, or several to be joined along their last axis.
        shape: Shape of the features' part of the weight tensor.
    """

    rows: NDArray[np.intp]
    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]


def cut(codes: NDArray[Any], widths: Widths, layout: WeightLayout) -> tuple[Block, ...]:
    """Cut a weight along its output features, and those along the taps of their kernel, by word length.

    Where inputs differ otherwise, all words of a feature are as long as its longest.

    Args:
        codes: Codes of the weight. Shape [out, in].
        widths: Bits of the codes.
        layout: Layout by which the graph stores the weight.

    Returns:
        Blocks; every feature is in one of them.
    """
    blocks, taps = [], int(np.prod(layout.shape[2:]))
    for width in np.unique(widths.rows):
        rows = np.flatnonzero(widths.rows == width)
        shape = tuple(len(rows) if axis == layout.out_axis else n for axis, n in enumerate(layout.shape))
        bits, part = np.maximum(width, widths.columns), WeightLayout(layout.out_axis, shape)
        by_tap = layout.out_axis == 0 and bool((bits.reshape(-1, taps) == bits[:taps]).all())
        if by_tap and len(set(bits.tolist())) > 1:
            pieces = _by_tap(codes[rows], bits, taps)
        else:
            pieces = (Piece(part.to_tensor(codes[rows]), int(bits.max())),)
        blocks.append(Block(rows, pieces, shape))
    return tuple(blocks)


def _by_tap(codes: NDArray[Any], bits: NDArray[np.int8], taps: int) -> tuple[Piece, ...]:
    """Put neighboring taps of one length together."""
    kernel, by_tap = codes.reshape(len(codes), -1, taps), bits[:taps]
    ends = [*np.flatnonzero(np.diff(by_tap)) + 1, taps]
    starts = [0, *ends[:-1]]
    return tuple(
        Piece(np.ascontiguousarray(kernel[..., a:b]), int(by_tap[a])) for a, b in zip(starts, ends, strict=True)
    )
