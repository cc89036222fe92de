"""The default observer: per tensor the best range of all other observers."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.calibration.observers.kl import Kl
from ptq.calibration.observers.kl_cfws import KlCfws
from ptq.calibration.observers.minmax import MinMax
from ptq.calibration.observers.mse import Mse
from ptq.calibration.observers.percentile import Percentile
from ptq.core.affine import Range
from ptq.core.distortion import range_error
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram

CANDIDATES = (MinMax(), Percentile(99.999), Percentile(99.99), Percentile(99.9), Mse(), Kl(), KlCfws())


@dataclass(frozen=True)
class Auto:
    """Ask every observer and keep the range of least expected squared error.

    `MinMax` is among them, so no tensor is worse than under `MinMax` on the calibration data.
    """

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Return the candidate range of least `expected_error`, the earliest among equals.

        Args:
            statistics: The tensor.
            spec: The grid that the range will be turned into.

        Returns:
            The best candidate's range.
        """
        ranges = [observer.choose_range(statistics, spec) for observer in CANDIDATES]
        return min(ranges, key=lambda limits: float(range_error(statistics, limits, spec)))
