"""Error that a grid adds to a tensor, computed from its histogram instead of its values.

With t = r s + f s (r the nearest level, clipped to the grid; f the distance to it in steps) the squared error of
rounding t to a grid of step s has the antiderivative F(t) = s^3 (r / 12 + f^3 / 3). A piece [a, b] of flat density
therefore adds count * (F(b) - F(a)) / (b - a): exact for rounding and clipping alike, however wide the piece.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams, Range, choose_qparams, nearest_level
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Density, Histogram


def expected_error(histogram: Histogram, params: QuantParams) -> NDArray[np.float64]:
    """Mean squared error of rounding the data to one or several per-tensor grids.

    Args:
        histogram: The data.
        params: `scale` and `zero_point` of the candidates. Shape [candidates] or [].

    Returns:
        Mean squared error per value, real units squared. Shape [candidates] or [].
    """
    scale = np.asarray(params.scale, np.float64)[..., None]
    zero = np.asarray(params.zero_point, np.float64)[..., None]
    low, high = (params.spec.qmin - zero), (params.spec.qmax - zero)
    lower, upper, counts = _without_zero(histogram.density)
    width = upper - lower
    point = width <= 1e-9 * np.maximum(np.abs(lower), np.abs(upper))
    spread = np.where(point, 1.0, width)
    interval = (_antiderivative(upper, scale, low, high) - _antiderivative(lower, scale, low, high)) / spread
    level = nearest_level(lower / scale, low, high) * scale
    per_piece = np.where(point, np.square(lower - level), interval)
    return np.asarray(per_piece @ counts / max(histogram.total, 1), np.float64)


def range_error(histogram: Histogram, limits: Range, spec: QuantSpec) -> NDArray[np.float64]:
    """Mean squared error of rounding the data to the grids that fit one or several ranges, see `expected_error`."""
    return expected_error(histogram, choose_qparams(limits, spec))


def _without_zero(density: Density) -> Density:
    """Drop exact zeros: they are codes of every grid and never add error."""
    keep = (density.lower != 0) | (density.upper != 0)
    return Density(*(column[keep] for column in density))


def _antiderivative(
    t: NDArray[np.float64], scale: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    steps = t / scale
    level = nearest_level(steps, low, high)
    rest = steps - level
    result: NDArray[np.float64] = scale**3 * (level / 12 + rest * rest * rest / 3)
    return result
