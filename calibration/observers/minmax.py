"""The whole observed range."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.core.affine import Range
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram


@dataclass(frozen=True)
class MinMax:
    """Cover everything that was seen: no clipping error, the coarsest step."""

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Return [smallest, largest] value seen.

        Args:
            statistics: The tensor.
            spec: Not used; part of the observer verb.

        Returns:
            The observed range, widened to contain 0.
        """
        return Range.of(statistics.rmin, statistics.rmax)
