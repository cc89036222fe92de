"""Ranges that leave a given share of the values out on either side."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.core.affine import Range
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram


@dataclass(frozen=True)
class Percentile:
    """Cover the central `percentile` percent of the values, (100 - percentile) / 2 cut at each end.

    Attributes:
        percentile: Percent kept, in (50, 100]. The default is the field's usual 99.999.
    """

    percentile: float = 99.999

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; expected a number in (50, 100]")

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Return the two quantiles, linear within a histogram bin.

        Args:
            statistics: The tensor.
            spec: Not used; part of the observer verb.

        Returns:
            The clipped range, widened to contain 0.
        """
        tail = (1 - self.percentile / 100) / 2
        return Range.of(statistics.quantile(tail), statistics.quantile(1 - tail))
