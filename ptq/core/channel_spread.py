"""Spread of the channels of a tensor over a data set: what never moves, and what moves as another does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float

NOBODY = -1
PROJECTIONS = 4
SAME = 1e-9
"""How far from 1 the cosine of two channels may be for one to be a multiple of the other."""


@dataclass(frozen=True)
class ChannelSpread:
    """Extremes of the channels of a tensor, and how far each is from a multiple of another.

    Attributes:
        low: Smallest value. Shape [channels].
        high: Largest value. Shape [channels].
        low_of_highs: Smallest of the samples' largest values. Shape [channels].
        high_of_lows: Largest of the samples' smallest values. Shape [channels].
        apart: Largest distance from the multiple, 0 for channels that are not compared. Shape [channels].
    """

    low: Float
    high: Float
    low_of_highs: Float
    high_of_lows: Float
    apart: Float

    @staticmethod
    def of(values: NDArray[Any], axis: int, multiples: Multiples | None = None) -> ChannelSpread:
        """Compute the spread of one sample.

        Args:
            values: The tensor.
            axis: Where the channels are.
            multiples: What each channel is compared with; None compares none.

        Example:
            >>> ChannelSpread.of(np.array([[1.0, -2.0], [3.0, -2.0]]), 1).width
            array([2., 0.])
        """
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        apart = np.zeros(len(rows))
        if multiples is not None and rows.size:
            led = np.flatnonzero(multiples.leaders != NOBODY)
            expected = multiples.factors[led, None] * rows[multiples.leaders[led]]
            apart[led] = np.abs(rows[led] - expected).max(1, initial=0.0)
        low, high = rows.min(1, initial=np.inf), rows.max(1, initial=-np.inf)
        return ChannelSpread(low, high, high, low, apart)

    def merge(self, other: ChannelSpread) -> ChannelSpread:
        """Merge the spreads of two sets; exact, associative and commutative."""
        return ChannelSpread(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.minimum(self.low_of_highs, other.low_of_highs),
            np.maximum(self.high_of_lows, other.high_of_lows),
            np.maximum(self.apart, other.apart),
        )

    @property
    def width(self) -> Float:
        """Distance of the extremes. Shape [channels]."""
        return np.asarray(self.high - self.low)

    @property
    def middle(self) -> Float:
        """Middle between the extremes. Shape [channels]."""
        return np.asarray((self.high + self.low) / 2)

    @property
    def step(self) -> float:
        """Step of 8 bits over the range of all channels, 0 included."""
        return float(max(self.high.max(initial=0.0), 0.0) - min(self.low.min(initial=0.0), 0.0)) / 255


@dataclass(frozen=True)
class Multiples:
    """Channels that are expected to be a multiple of another one.

    Attributes:
        leaders: The other channel, -1 for none. Shape [channels].
        factors: How many times the other. Shape [channels].
    """

    leaders: NDArray[np.int64]
    factors: Float

    @staticmethod
    def of(sketches: Float) -> Multiples:
        """Find multiples by random projections of what channels did.

        Args:
            sketches: Shape [projections, channels].

        Example:
            >>> Multiples.of(np.array([[1.0, 0.5, -2.0], [3.0, 1.0, -6.0]])).leaders
            array([-1, -1,  0])
        """
        sizes = np.linalg.norm(sketches, axis=0)
        unit = sketches / np.where(sizes > 0, sizes, 1.0)
        alike = np.abs(unit.T @ unit) > 1 - SAME
        alike[sizes == 0] = alike[:, sizes == 0] = False
        first = np.where(alike.any(1), alike.argmax(1), NOBODY)
        leaders = np.where(first < np.arange(len(first)), first, NOBODY)
        led = leaders != NOBODY
        factors = np.zeros(len(leaders))
        of = leaders[led]
        factors[led] = (sketches[:, led] * sketches[:, of]).sum(0) / np.square(sizes[of])
        return Multiples(leaders, factors)

    @staticmethod
    def of_groups(sketches: Float, groups: NDArray[np.int64]) -> Multiples:
        """Find multiples among groups of channels: each channel of one is the same multiple of the other's.

        Args:
            sketches: Shape [projections, channels].
            groups: Group of each channel, in the same order in each. Shape [channels].

        Example:
            >>> Multiples.of_groups(np.array([[1.0, 0.0, 2.0, 0.0]]), np.array([7, 7, 3, 3])).leaders
            array([-1, -1,  0,  1])
        """
        _, first, group, size = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
        leaders, factors = np.full(len(groups), NOBODY), np.zeros(len(groups))
        for count in np.unique(size).tolist():
            alike = np.flatnonzero(size == count)
            alike = alike[np.argsort(first[alike])]
            order = np.argsort(group, kind="stable")
            starts = np.cumsum(size) - size
            at = order[starts[alike][:, None] + np.arange(count)]  # [groups, channels of each]
            found = Multiples.of(sketches[:, at].transpose(0, 2, 1).reshape(-1, len(alike)))
            led = np.flatnonzero(found.leaders != NOBODY)
            leaders[at[led]], factors[at[led]] = at[found.leaders[led]], found.factors[led, None]
        return Multiples(leaders, factors)


@dataclass(frozen=True)
class ChannelSketch:
    """Random projections of what channels did, sample by sample.

    Attributes:
        rows: Number of a sample -> its projections, shape [projections, channels].
    """

    rows: dict[int, Float]

    @staticmethod
    def of(values: NDArray[Any], axis: int, number: int) -> ChannelSketch:
        """Project one sample's channels, all by the same random numbers.

        Args:
            values: The tensor.
            axis: Where the channels are.
            number: Number of the sample.
        """
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        by = np.random.default_rng(number).standard_normal((rows.shape[1], PROJECTIONS))
        return ChannelSketch({number: (rows @ by).T})

    def merge(self, other: ChannelSketch) -> ChannelSketch:
        """Merge the projections of two sets of samples."""
        return ChannelSketch({**self.rows, **other.rows})

    def multiples(self, groups: NDArray[np.int64]) -> Multiples:
        """Return which channels were multiples of others on these samples, by groups that can only be so together.

        Args:
            groups: Group of each channel. Shape [channels].
        """
        return Multiples.of_groups(np.concatenate([self.rows[number] for number in sorted(self.rows)]), groups)
