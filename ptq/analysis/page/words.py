"""How a report writes numbers and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ptq.core.decibels import NO_ERROR_DB

LONGEST = 160
"""Characters of a name."""


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    if not num_bytes:
        return "0"
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def decibel(value: float | None) -> str:
    """A ratio in dB, without the unit."""
    if value is None:
        return ""
    return "exact" if value >= NO_ERROR_DB else f"{value:.1f}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share of 1; of what is there, never 0."""
    if share is None:
        return ""
    least = 10.0 ** -(digits + 2)
    return f"< {least:.{digits}%}" if 0 < share < least else f"{share:.{digits}%}" if share else "0"


def grouped(number: int) -> str:
    """A whole number in groups of three."""
    return f"{number:,}"


def real(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def brief(text: str) -> str:
    """A name that fits, its end included."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"


FILTERS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (size, decibel, percent, grouped, real, brief)
}
