"""How far a layer may be asked to undo the errors of the layers before it, judged on rows it was not fitted to.

Weights that minimise the error against the float output, given the quantized input, also fit the noise of the rows
that they were computed from; with few rows for many inputs that does more harm than good. Damping holds every weight
to its float value: with D the diagonal of H, H and G become H + s D and G + s D.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptq.core.layer_statistics import LayerStatistics

STRENGTHS = (0.001, 0.01, 0.1, 1.0, np.inf)
"""Candidates; infinity asks for the float weight on the quantized input and leaves earlier errors alone."""

CAUTIOUS = 1.0
"""Strength where there is nothing to judge by."""


def damped(statistics: LayerStatistics, strength: float) -> LayerStatistics:
    """Moments that hold each weight to its float value.

    Args:
        statistics: Moments of a layer's input.
        strength: Share of the diagonal that is added to both moments.
    """
    if statistics.matched:
        return statistics
    if np.isinf(strength):
        return replace(statistics, cross=statistics.gram)
    held = strength * np.einsum("gii->gi", statistics.gram)[:, :, None] * np.eye(statistics.gram.shape[-1])
    return replace(statistics, gram=statistics.gram + held, cross=statistics.cross + held)


def choose_damping(first: LayerStatistics, second: LayerStatistics, weight: NDArray[np.float32]) -> float:
    """The strength whose real weights, fitted to one half of the rows, err least on the other.

    Args:
        first: Moments over half of the rows.
        second: Moments over the others.
        weight: Float weight. Shape [groups * out, in].

    Returns:
        One of `STRENGTHS`.

    Cost:
        Solves 2 systems of in^2 per finite strength and group.
    """
    import os
    if "STR" in os.environ: return float(os.environ["STR"])
    if first.matched and second.matched:
        return np.inf
    errors = [
        second.relative_error(_fit(first, weight, strength), weight)
        + first.relative_error(_fit(second, weight, strength), weight)
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmin(errors))]


def _fit(statistics: LayerStatistics, weight: NDArray[np.float32], strength: float) -> NDArray[np.float64]:
    """Real weights of least damped error. Shape of `weight`."""
    if np.isinf(strength):
        return weight.astype(np.float64)
    seen = damped(statistics, strength)
    size = seen.gram.shape[-1]
    by_group = weight.reshape(len(seen.gram), -1, size).astype(np.float64)
    floor = 1e-10 * np.einsum("gii->gi", seen.gram).max(-1)[:, None, None] * np.eye(size) + 1e-30 * np.eye(size)
    asked = np.matmul(seen.cross + floor, by_group.transpose(0, 2, 1))
    return np.linalg.solve(seen.gram + floor, asked).transpose(0, 2, 1).reshape(weight.shape)
