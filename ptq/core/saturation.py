"""Weights of 8 bits whose products never overflow 16 bits.

x86 processors without VNNI multiply unsigned by signed bytes two at a time and add both products in 16 bits, which
saturate: 255 * 127 + 255 * 127 comes out as half of it. The usual way out is 7 bits for every weight. Enough is that
two neighbours of one sign add up to at most 128, as 255 * 128 < 2^15. Few pairs of a row are large together, so its
scale grows a little where they would lose too much, and at the worst to that of 7 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import nearest_level
from ptq.core.grid_search import best_ratios
from ptq.core.spec import PerTensor, QuantSpec

PAIR_SUM = 128
"""What the levels of two neighbours of one sign may add up to."""

WIDENINGS = np.geomspace(1.0, 2.0, 25)
"""Scales that are tried, against that of the largest weight; the last one fits any pair."""

AT_ONCE = 1 << 18
"""Weights that are tried at a time; they stay in the caches."""

Float = NDArray[np.float64]
Single = NDArray[np.float32]


@dataclass(frozen=True)
class SaturationLimits:
    """Levels that each weight may take, whatever its neighbour takes.

    Attributes:
        low: Smallest level, at most 0. Shape [out, in].
        high: Largest level, at least 0. Shape [out, in].
        scale: Of the least squared error within these levels; one number for all rows that share it. Shape [out].
    """

    low: Float
    high: Float
    scale: Float

    @staticmethod
    def of(weight: Single, order: NDArray[np.intp], spec: QuantSpec, ends: tuple[Float, Float]) -> SaturationLimits:
        """Divide the room of each pair between its weights, more of it to the larger one.

        Args:
            weight: Shape [out, in].
            order: Columns as kernels meet them: the first and the second are neighbours, the third and the fourth, ...
            spec: Which rows share a scale.
            ends: Smallest and largest level of each weight without neighbours. Shapes [out, in], or [].

        Returns:
            Limits and scales.

        Example:
            >>> wide = np.array([[1.0, 1.0, 1.0, -1.0]], np.float32)
            >>> ends = np.asarray(-127.0), np.asarray(127.0)
            >>> limits = SaturationLimits.of(wide, np.arange(4), QuantSpec(signed=True, symmetric=True), ends)
            >>> limits.high.tolist(), limits.low.tolist()
            ([[64.0, 64.0, 127.0, 1.0]], [[-64.0, -64.0, -1.0, -127.0]])
        """
        low, high = (np.broadcast_to(end, weight.shape)[:, order].astype(np.float32) for end in ends)
        ordered = weight[:, order].astype(np.float32)
        shared = isinstance(spec.granularity, PerTensor)
        size = len(weight) if shared else AT_ONCE // max(weight.shape[1], 1)
        natural = np.argsort(order)
        found = SaturationLimits(np.empty(weight.shape), np.empty(weight.shape), np.empty(len(weight)))
        for start in range(0, len(weight), max(size, 1)):
            rows = slice(start, start + max(size, 1))
            scale = _best_scale(ordered[rows], low[rows], high[rows], shared=shared)
            levels: Single = ordered[rows] / scale.astype(np.float32).reshape(-1, 1)
            lowest, highest = _room(levels, low[rows], high[rows])
            found.low[rows], found.high[rows], found.scale[rows] = lowest[:, natural], highest[:, natural], scale
        return found


def overflows(levels: NDArray[np.integer], order: NDArray[np.intp]) -> bool:
    """Whether two neighbours of one sign take more than their room."""
    ordered = levels[:, order].astype(np.int64)
    padded = np.pad(ordered, ((0, 0), (0, ordered.shape[1] % 2)))
    return any(
        bool((side[:, 0::2] + side[:, 1::2]).max(initial=0) > PAIR_SUM)
        for side in (np.maximum(padded, 0), np.maximum(-padded, 0))
    )


def _room(levels: Single, low: Single, high: Single) -> tuple[Single, Single]:
    """Limits of neighbours whose sums fit and that cut off as little as possible; real levels, in kernel order."""
    count = levels.shape[1]
    padded = np.pad(levels, ((0, 0), (0, count % 2)))
    apart = (padded[:, 0::2] - padded[:, 1::2]) / 2
    up, down = (nearest_level(PAIR_SUM / 2 + side, 1, PAIR_SUM - 1) for side in (apart, -apart))
    highest = np.stack([up, PAIR_SUM - up], 2).reshape(padded.shape)[:, :count]
    lowest = -np.stack([down, PAIR_SUM - down], 2).reshape(padded.shape)[:, :count]
    return np.maximum(lowest, low), np.minimum(highest, high)


def _best_scale(weight: Single, low: Single, high: Single, *, shared: bool) -> Float:
    """Per row, or for all, the scale of least squared error."""
    reach = np.where(weight < 0, weight / np.minimum(low, -1e-9), weight / np.maximum(high, 1e-9)).max(1, initial=0.0)
    reach = np.full(reach.shape, reach.max(initial=0.0)) if shared else reach
    finest = np.where(reach > 0, reach, 1.0).astype(np.float64)

    def errors(widening: float, tried: NDArray[np.intp]) -> tuple[Float, NDArray[np.bool_]]:
        scale: Float = finest[tried] * widening
        single: Single = scale[:, None].astype(np.float32)
        levels: Single = weight[tried] / single
        lowest, highest = _room(levels, low[tried], high[tried])
        error = np.square(nearest_level(levels, lowest, highest) - levels).sum(1, dtype=np.float64) * np.square(scale)
        cut = np.asarray(((levels > highest + 0.5) | (levels < lowest - 0.5)).any(1))
        if shared:
            return np.full(error.shape, error.sum()), np.full(cut.shape, cut.any())
        return error, cut  # where nothing is cut off, a wider scale only rounds worse

    return np.asarray(finest * best_ratios(len(weight), WIDENINGS, errors))
