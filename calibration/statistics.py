"""Statistics that can be taken of a value over a calibration set.

Each is a frozen dataclass that turns one sample's array into something that merges exactly, so that parts of a set may
be seen anywhere and in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ptq.core.channel_extremes import HalvedExtremes
from ptq.core.channel_mean import ChannelMean
from ptq.core.channel_refit import ChannelMoments
from ptq.core.channel_spread import ChannelSketch, ChannelSpread, Multiples
from ptq.core.statistics import Histogram, HistogramAccumulator

FLUSH = 1 << 18
"""Values gathered per tensor before they are counted: a count has a fixed cost."""


class Seen(Protocol):
    """A statistic of a value over one sample or many."""

    def merge(self, other: Self) -> Self:
        """Merge the statistics of two sets; exact, associative and commutative."""
        ...


class Gatherer(Protocol):
    """A builder of one statistic, sample by sample."""

    def add(self, part: Any) -> None:
        """Add the contribution of one sample, as `Statistic.of` gave it."""
        ...

    def value(self) -> Any:
        """Return the statistic of all samples so far; None if there was nothing."""
        ...


class Statistic(Protocol):
    """A kind of statistic: turns one sample's array into a contribution."""

    @property
    def tag(self) -> str:
        """Name of the statistic in records; a value has at most one of each."""
        ...

    def of(self, values: NDArray[np.float32], number: int) -> Any:
        """Compute the contribution of one sample.

        Args:
            values: The value on that sample, finite.
            number: Number of the sample in the set.
        """
        ...

    def gatherer(self) -> Gatherer:
        """Begin to gather contributions."""
        ...


Wanted = Mapping[str, tuple[Statistic, ...]]
"""Value name -> statistics that are taken of it."""


@dataclass(frozen=True)
class HistogramOf:
    """Statistic: the distribution of all numbers of a value.

    Attributes:
        without: Channels (last axis) that are left out.
    """

    without: tuple[int, ...] = ()
    tag: ClassVar[str] = "histogram"

    def of(self, values: NDArray[np.float32], _number: int) -> NDArray[np.float32]:
        """Return the numbers themselves, flat: they are counted many at a time."""
        return (np.delete(values, self.without, -1) if self.without else values).reshape(-1)

    def gatherer(self) -> Gatherer:
        """Return a builder that counts when there is enough to count."""
        return _Counting()


class _Merged:
    """Statistic whose contributions are merged as they come."""

    def gatherer(self) -> Gatherer:
        """Return a builder that merges one sample after the other."""
        return _Merging()


@dataclass(frozen=True)
class MeanOf(_Merged):
    """Statistic: the mean of each channel.

    Attributes:
        axis: Where the channels are.
    """

    axis: int
    tag: ClassVar[str] = "mean"

    def of(self, values: NDArray[np.float32], _number: int) -> ChannelMean | None:
        """Compute the means of one sample; None for an empty value."""
        return ChannelMean.of(values, self.axis) if values.size else None


@dataclass(frozen=True)
class ExtremesOf(_Merged):
    """Statistic: extremes and energy of each channel, over two halves of the set.

    Attributes:
        axis: Where the channels are.
    """

    axis: int = -1
    tag: ClassVar[str] = "extremes"

    def of(self, values: NDArray[np.float32], number: int) -> HalvedExtremes:
        """Compute the extremes of one sample, in the half that its number says."""
        return HalvedExtremes.of(values, self.axis, number)


@dataclass(frozen=True)
class LevelOf(_Merged):
    """Statistic: the mean square of a sample, in dB; silent samples have none."""

    tag: ClassVar[str] = "level"

    def of(self, values: NDArray[np.float32], _number: int) -> ChannelMean | None:
        """Compute the level of one sample; None where it is empty or nothing but zeros."""
        square = float(np.square(values, dtype=np.float64).mean()) if values.size else 0.0
        return ChannelMean.of(np.array([10 * np.log10(square)], np.float32), 0) if square > 0 else None


@dataclass(frozen=True)
class SpreadOf(_Merged):
    """Statistic: extremes of each channel of whatever sign, and how far it is from a multiple of another.

    Attributes:
        axis: Where the channels are.
        leaders: Channel that each is compared with, -1 for none; empty compares none.
        factors: How many times that channel.
    """

    axis: int
    leaders: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    tag: ClassVar[str] = "spread"

    def of(self, values: NDArray[np.float32], _number: int) -> ChannelSpread:
        """Compute the spread of one sample."""
        known = Multiples(np.array(self.leaders, np.int64), np.array(self.factors)) if self.leaders else None
        return ChannelSpread.of(values, self.axis, known)


@dataclass(frozen=True)
class SketchOf(_Merged):
    """Statistic: random projections of each channel, which tell multiples of one another.

    Attributes:
        axis: Where the channels are.
    """

    axis: int
    tag: ClassVar[str] = "sketch"

    def of(self, values: NDArray[np.float32], number: int) -> ChannelSketch:
        """Project the channels of one sample."""
        return ChannelSketch.of(values, self.axis, number)


@dataclass(frozen=True)
class MomentsOf(_Merged):
    """Statistic: second moments of the channels.

    Attributes:
        axis: Where the channels are.
    """

    axis: int
    tag: ClassVar[str] = "moments"

    def of(self, values: NDArray[np.float32], number: int) -> ChannelMoments:
        """Compute the moments of one sample."""
        return ChannelMoments.of(values, self.axis, number)


class _Merging:
    def __init__(self) -> None:
        self._sum: Any = None

    def add(self, part: Any) -> None:
        if part is not None:
            self._sum = part if self._sum is None else self._sum.merge(part)

    def value(self) -> Any:
        return self._sum


class _Counting:
    def __init__(self) -> None:
        self._counts = HistogramAccumulator()
        self._waiting: list[NDArray[np.float32]] = []

    def add(self, part: NDArray[np.float32]) -> None:
        self._waiting.append(part)
        if sum(map(len, self._waiting)) >= FLUSH:
            self._count()

    def value(self) -> Histogram:
        self._count()
        return self._counts.value()

    def _count(self) -> None:
        if self._waiting:
            self._counts.update(np.concatenate(self._waiting))
            self._waiting = []
