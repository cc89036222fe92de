"""Interval of a share: what a count of samples leaves open."""

from __future__ import annotations

import math

NORMAL_95 = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share seen in a number of independent samples (Wilson 1927).

    Args:
        share: Seen, 0 to 1.
        count: Samples, at least 1.

    Example:
        >>> low, high = wilson(0.9, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    square = NORMAL_95**2 / count
    middle, spread = share + square / 2, math.sqrt(share * (1 - share) * square + square**2 / 4)
    return max((middle - spread) / (1 + square), 0.0), min((middle + spread) / (1 + square), 1.0)


def share_text(share: float, count: int) -> str:
    """Write a share with its interval.

    Example:
        >>> share_text(0.9, 100)
        '90.0 % (82.6 to 94.5 %)'
    """
    low, high = wilson(share, count)
    return f"{share:.1%} ({low * 100:.1f} to {high:.1%})".replace("%", " %")
