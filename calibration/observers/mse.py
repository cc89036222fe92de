"""The range with the least expected squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import Range
from ptq.core.checks import require_within
from ptq.core.distortion import range_error
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram

MIN_RATIO = 1 / 1024


@dataclass(frozen=True)
class Mse:
    """Search both ends of the range for the least mean squared error.

    One end after the other is shrunk over a geometric grid of ratios and then refined around the best; the whole
    range is always among the candidates, so the result is never worse than `MinMax` on the same data.

    Attributes:
        num_candidates: Ratios per line search. 48 leaves the optimum within about 0.1 % of its error.
        num_rounds: How often both ends are searched in turn.
    """

    num_candidates: int = 48
    num_rounds: int = 2

    def __post_init__(self) -> None:
        require_within(self, num_candidates=(2, 100_000), num_rounds=(0, 100))

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Search the range of least `expected_error`.

        Args:
            statistics: The tensor.
            spec: The grid that the range will be turned into.

        Returns:
            The best range found, widened to contain 0.
        """
        ends = np.array([min(statistics.rmin, 0.0), max(statistics.rmax, 0.0)])
        if spec.symmetric:
            ends = np.array([-1.0, 1.0]) * np.abs(ends).max()
        best = ends.copy()
        coarse = np.geomspace(MIN_RATIO, 1.0, self.num_candidates)
        fine = np.geomspace(coarse[0] / coarse[1], coarse[1] / coarse[0], self.num_candidates)
        for _ in range(self.num_rounds):
            for side in self._sides(spec, ends):
                best = _search(statistics, spec, best, ends, side, coarse * ends[side[-1]])
                best = _search(statistics, spec, best, ends, side, fine * best[side[-1]])
        return Range.of(best[0], best[1])

    def _sides(self, spec: QuantSpec, ends: NDArray[np.float64]) -> list[list[int]]:
        """Return the sets of ends that move together; 0 stands for rmin, 1 for rmax."""
        if spec.symmetric:
            return [[0, 1]]
        return [[side] for side in (1, 0) if ends[side] != 0]


def _search(
    statistics: Histogram,
    spec: QuantSpec,
    best: NDArray[np.float64],
    ends: NDArray[np.float64],
    side: list[int],
    values: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the best range with `values` tried for the ends in `side`, mirrored if both move; `best` is tried too."""
    trial = np.repeat(best[None, :], len(values) + 1, axis=0)
    for end in side:
        sign = 1.0 if end == side[-1] else -1.0
        trial[1:, end] = np.clip(sign * values, ends.min(), ends.max())
    errors = range_error(statistics, Range(trial[:, 0], trial[:, 1]), spec)
    chosen: NDArray[np.float64] = trial[int(np.argmin(errors))]
    return chosen
