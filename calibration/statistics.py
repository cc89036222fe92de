"""What can be asked of a value over a calibration set.

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
from ptq.core.statistics import Histogram, HistogramAccumulator

FLUSH = 1 << 18
"""Values gathered per tensor before they are counted: a count has a fixed cost."""


class Seen(Protocol):
    """What was seen of a value: of one sample or of many."""

    def merge(self, other: Self) -> Self:
        """Of both sets; exact, associative and commutative."""
        ...


class Gatherer(Protocol):
    """A statistic under construction."""

    def add(self, part: Any) -> None:
        """Add what `Statistic.of` gave for one sample."""
        ...

    def value(self) -> Any:
        """Everything seen so far; None if there was nothing."""
        ...


class Statistic(Protocol):
    """The family's verb: what one sample's array contributes."""

    @property
    def tag(self) -> str:
        """What it is called in records: a value has at most one of each."""
        ...

    def of(self, values: NDArray[np.float32], number: int) -> Any:
        """The contribution of one sample.

        Args:
            values: The value on that sample, finite.
            number: Of the sample in the set.
        """
        ...

    def gatherer(self) -> Gatherer:
        """A builder for contributions."""
        ...


Wanted = Mapping[str, tuple[Statistic, ...]]
"""Value name -> what is asked of it."""


@dataclass(frozen=True)
class HistogramOf:
    """The distribution of all numbers of a value.

    Attributes:
        without: Channels (last axis) that are left out.
    """

    without: tuple[int, ...] = ()
    tag: ClassVar[str] = "histogram"

    def of(self, values: NDArray[np.float32], _number: int) -> NDArray[np.float32]:
        """The numbers themselves: they are counted many at a time."""
        return (np.delete(values, self.without, -1) if self.without else values).reshape(-1)

    def gatherer(self) -> Gatherer:
        """A builder that counts when there is enough to count."""
        return _Counting()


@dataclass(frozen=True)
class MeanOf:
    """The mean of each channel.

    Attributes:
        axis: Where the channels are.
    """

    axis: int
    tag: ClassVar[str] = "mean"

    def of(self, values: NDArray[np.float32], _number: int) -> ChannelMean | None:
        """Means of one sample; nothing of an empty value."""
        return ChannelMean.of(values, self.axis) if values.size else None

    def gatherer(self) -> Gatherer:
        """A builder that merges."""
        return _Merging()


@dataclass(frozen=True)
class ExtremesOf:
    """Extremes and energy of each channel, over two halves of the set.

    Attributes:
        axis: Where the channels are.
    """

    axis: int = -1
    tag: ClassVar[str] = "extremes"

    def of(self, values: NDArray[np.float32], number: int) -> HalvedExtremes:
        """Extremes of one sample, in the half that its number says."""
        return HalvedExtremes.of(values, self.axis, number)

    def gatherer(self) -> Gatherer:
        """A builder that merges."""
        return _Merging()


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
