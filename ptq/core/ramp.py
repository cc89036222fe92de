"""Hard sigmoids on codes: a ramp between two flat ends is a clip of codes where its foot lies on one of them.

With y = clip(alpha x + beta, 0, 1) and x = scale * (code - zero): where the foot x0 = -beta / alpha is `steps` codes
below the zero point, y = alpha * scale * (clip(code) - (zero - steps)): the clipped codes are y's, on a grid that
follows from that of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptq.core.affine import SMALLEST_SCALE, QuantParams, Range
from ptq.core.spec import QuantSpec


@dataclass(frozen=True)
class Ramp:
    """Hard sigmoid clip(alpha x + beta, 0, 1) with alpha > 0 and 0 < beta < 1.

    Attributes:
        alpha: Slope.
        beta: Value at 0.
    """

    alpha: float
    beta: float

    @property
    def foot(self) -> float:
        """Where the ramp starts, below 0."""
        return -self.beta / self.alpha

    @property
    def top(self) -> float:
        """Where the ramp ends, above 0."""
        return (1.0 - self.beta) / self.alpha

    def fit(self, limits: Range, spec: QuantSpec, *, cut: bool) -> QuantParams:
        """Fit a grid to a range, with the foot on a code.

        Args:
            limits: Interval to cover, real units, scalar.
            spec: Word length and sign.
            cut: Whether the grid starts at the foot, as values below it are the same to all that read them.

        Returns:
            The grid; its step is as long as without a ramp or up to 1 / k longer, k codes below the zero point.

        Example:
            >>> grid = Ramp(1 / 6, 0.5).fit(Range.of(-8.0, 9.0), QuantSpec(), cut=True)
            >>> round(float(grid.scale), 5), int(grid.zero_point)
            (0.04762, 63)
        """
        low = self.foot if cut else min(float(limits.rmin), self.foot)
        qmin, qmax = spec.limits
        step = max((float(limits.rmax) - low) / (qmax - qmin), -self.foot / (qmax - qmin), SMALLEST_SCALE)
        steps = max(1, int(-self.foot / step * (1 + 1e-12)))
        scale = -self.foot / steps
        zero = min(qmin + (steps if cut else max(steps, round(-low / scale))), qmax)
        kind = spec.storage_dtype
        return QuantParams(np.asarray(scale, np.float32), np.asarray(zero).astype(kind), spec)

    def gate(self, grid: QuantParams) -> QuantParams:
        """Return the grid of y that follows from a grid of x that `fit` returned."""
        zero = int(grid.zero_point) - self._steps(grid, -self.foot)
        scale = np.asarray(float(grid.scale) * self.alpha, np.float32)
        return QuantParams(scale, np.asarray(zero).astype(grid.zero_point.dtype), grid.spec)

    def ends(self, grid: QuantParams) -> tuple[int, int]:
        """Return the codes of x that the ramp starts and ends at, within those that x has."""
        zero, (qmin, qmax) = int(grid.zero_point), grid.spec.limits
        return max(zero - self._steps(grid, -self.foot), qmin), min(zero + self._steps(grid, self.top), qmax)

    @staticmethod
    def _steps(grid: QuantParams, length: float) -> int:
        return round(length / float(grid.scale))
