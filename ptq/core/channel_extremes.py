"""Extremes of the channels of a tensor over a data set, and the energy that each channel carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.tree_sum import TreeSum

Float = NDArray[np.float64]


@dataclass(frozen=True)
class ChannelExtremes:
    """Extremes and energy of the channels of a tensor.

    Attributes:
        low: Smallest value, at most 0. Shape [channels].
        high: Largest value, at least 0. Shape [channels].
        square: Sum of squares. Shape [channels].
        count: Number of positions.
        least: Smallest value, of whatever sign; infinite if there was none. Shape [channels].
    """

    low: Float
    high: Float
    square: Float
    count: int
    least: Float

    @staticmethod
    def of(values: NDArray[Any], axis: int = -1) -> ChannelExtremes:
        """Compute the extremes of one sample.

        Args:
            values: Shape [..., channels], or with the channels elsewhere.
            axis: Where the channels are.

        Example:
            >>> ChannelExtremes.of(np.array([[1.0, -2.0], [3.0, -1.0]])).reach
            array([3., 2.])
        """
        rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)
        least = rows.min(0, initial=np.inf)
        return ChannelExtremes(
            np.minimum(least, 0.0), rows.max(0, initial=0.0), np.square(rows).sum(0), rows.shape[0], least
        )

    def merge(self, other: ChannelExtremes) -> ChannelExtremes:
        """Merge the extremes of two sets; sums are float additions, so a fixed order gives fixed bits."""
        return ChannelExtremes(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.square + other.square,
            self.count + other.count,
            np.minimum(self.least, other.least),
        )

    def over(self, scale: Float) -> ChannelExtremes:
        """Extremes of the tensor divided by a positive scale per channel."""
        return ChannelExtremes(
            self.low / scale, self.high / scale, self.square / np.square(scale), self.count, self.least / scale
        )

    def at(self, channels: NDArray[np.int64]) -> ChannelExtremes:
        """Extremes of the named channels only."""
        return ChannelExtremes(
            self.low[channels], self.high[channels], self.square[channels], self.count, self.least[channels]
        )

    @property
    def reach(self) -> Float:
        """Largest magnitude. Shape [channels]."""
        return np.maximum(-self.low, self.high)

    def masked(self, inside: Float) -> ChannelExtremes:
        """Extremes of the tensor with zeros in some channels; `inside` is 0 there and 1 elsewhere."""
        return ChannelExtremes(
            self.low * inside, self.high * inside, self.square * inside, self.count, self.least * inside
        )

    def without(self, channels: NDArray[np.int64]) -> ChannelExtremes:
        """Extremes of all channels but the named ones."""
        return self.at(np.setdiff1d(np.arange(len(self.low)), channels))


@dataclass(frozen=True)
class HalvedExtremes:
    """Extremes over the samples with even numbers, and over those with odd ones: exact, however a set is divided.

    Attributes:
        low: Smallest values, at most 0. Shape [2, channels].
        high: Largest values, at least 0. Shape [2, channels].
        least: Smallest values, of whatever sign; infinite if there was none. Shape [2, channels].
        squares: Sums of squares of the two halves, terms numbered within each.
        positions: How many positions each half has.
    """

    low: Float
    high: Float
    least: Float
    squares: tuple[TreeSum, TreeSum]
    positions: tuple[int, int]

    @staticmethod
    def of(values: NDArray[Any], axis: int, number: int) -> HalvedExtremes:
        """Compute the extremes of one sample, in the half that its number says.

        Args:
            values: Shape [..., channels], or with the channels elsewhere.
            axis: Where the channels are.
            number: Of the sample in its set.
        """
        extremes, half = ChannelExtremes.of(values, axis), number % 2
        in_half = np.arange(2)[:, None] == half
        nothing = TreeSum({})
        square = TreeSum.of(extremes.square, number // 2)
        return HalvedExtremes(
            np.where(in_half, extremes.low, 0.0) + 0.0,  # of -0.0 and 0.0 either may be the smaller one
            np.where(in_half, extremes.high, 0.0) + 0.0,
            np.where(in_half, extremes.least, np.inf) + 0.0,
            (nothing, square) if half else (square, nothing),
            (0, extremes.count) if half else (extremes.count, 0),
        )

    def merge(self, other: HalvedExtremes) -> HalvedExtremes:
        """Merge the extremes of two sets; exact, associative and commutative.

        Raises:
            ValueError: A sample is in both.
        """
        (even, odd), (others_even, others_odd) = self.squares, other.squares
        return HalvedExtremes(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.minimum(self.least, other.least),
            (even.merge(others_even), odd.merge(others_odd)),
            (self.positions[0] + other.positions[0], self.positions[1] + other.positions[1]),
        )

    @property
    def halves(self) -> tuple[ChannelExtremes, ChannelExtremes]:
        """Extremes of each half; if one half has no sample, those of the other stand for it."""
        first, second = (self._half(index) if self.squares[index].nodes else None for index in (0, 1))
        return (first or second or self._half(0)), (second or first or self._half(1))

    def _half(self, half: int) -> ChannelExtremes:
        square = np.broadcast_to(self.squares[half].value, self.low[half].shape)
        return ChannelExtremes(self.low[half], self.high[half], square, self.positions[half], self.least[half])
