"""Cost of solving weights, roughly: what a method that sees the data takes, counted before it begins."""

from __future__ import annotations

from collections.abc import Iterable

from ptq.core.layer import LinearLayer

POSITIONS = 64
"""Positions of a sample that enter the moments of a layer, at most."""

SWEEPS = 10
"""Passes over a weight's columns that a solver makes, roughly."""

PER_SECOND = 6e10
"""Products and sums of a core, as seen on five networks from 0.3 to 23 million weights."""

PER_LAYER = 0.1
"""Seconds that each layer takes however small it is."""


def seconds_to_solve(layers: Iterable[LinearLayer], num_samples: int, run_seconds: float = 0.0) -> float:
    """Estimate the processor time of moments and of the solver that reads them.

    Args:
        layers: Layers whose weights are solved.
        num_samples: Samples that moments are taken of.
        run_seconds: One sample through the network.
    """
    seconds = 2 * num_samples * run_seconds
    for layer in layers:
        groups, width = layer.unfold.groups, layer.fan_in
        features = layer.layout.shape[layer.layout.out_axis]
        moments = 4 * groups * width**2 * num_samples * POSITIONS
        solving = SWEEPS * features * width**2 + groups * width**3
        seconds += (moments + solving) / PER_SECOND + PER_LAYER
    return seconds
