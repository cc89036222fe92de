"""Ranges of values that one function reads: they reach as far as the function tells values apart."""

from __future__ import annotations

import numpy as np

from ptq.core.affine import Range
from ptq.core.arrays import Float
from ptq.core.curve import Curve
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram

SHARES = np.geomspace(1 / 256, 1.0, 32)
FINER = np.geomspace(SHARES[0] / SHARES[1], SHARES[1] / SHARES[0], 9)
"""Shares of an end of a range that are tried, and finer ones around the best."""


def narrowed(histogram: Histogram, curve: Curve, limits: Range, spec: QuantSpec) -> Range:
    """Move the ends of a range towards 0 where what the function makes of the values errs less by it.

    Args:
        histogram: Values that were seen.
        curve: What is made of them.
        limits: Range to start from, scalar.
        spec: The grid that the range will be turned into.

    Returns:
        The range of least error, never one of more than `limits` has.
    """
    ends = [float(limits.rmin), float(limits.rmax)]
    if spec.symmetric or not histogram.total:
        return limits
    for side in (0, 1):
        whole = ends[side]
        for shares in (SHARES, FINER):
            tried = np.append(ends[side], np.clip(ends[side] * shares, min(whole, 0.0), max(whole, 0.0)))
            low, high = (tried if end == side else np.full(len(tried), ends[end]) for end in (0, 1))
            ends[side] = float(tried[np.argmin(_errors(histogram, curve, low, high, spec))])
    return Range.of(*ends)


def _errors(histogram: Histogram, curve: Curve, low: Float, high: Float, spec: QuantSpec) -> Float:
    """Return the mean squared error of the function's results, each over its own mean square. Shape of `low`.

    Rounding moves a value by the same root mean square either way, clipping to the end.
    """
    lower, upper, counts = histogram.density
    middle, low, high = (lower + upper) / 2, low[:, None], high[:, None]
    step = (high - low) / (spec.qmax - spec.qmin) / np.sqrt(12.0)
    wanted, kept = curve.of(middle)[:, None], np.clip(middle, low, high)
    error = sum(np.square(curve.of(np.clip(kept + off, low, high)) - wanted) for off in (step, -step))
    signal = np.square(wanted) @ counts
    return np.asarray(((error @ counts) / np.maximum(signal, 1e-300)).sum(0))
