"""Words of the page: numbers and names as a report writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ptq.core.decibels import NO_ERROR_DB

LONGEST = 160
"""Most characters of a name."""


def size(num_bytes: int) -> str:
    """Write a number of bytes in kB or MB."""
    if not num_bytes:
        return "0"
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def decibel(value: float | None) -> str:
    """Write a ratio in dB, without the unit."""
    if value is None:
        return ""
    return "exact" if value >= NO_ERROR_DB else f"{value:.1f}"


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share of 1 as percent; never 0 where there is something."""
    if share is None:
        return ""
    least = 10.0 ** -(digits + 2)
    return f"< {least:.{digits}%}" if 0 < share < least else f"{share:.{digits}%}" if share else "0"


def grouped(number: int) -> str:
    """Write a whole number in groups of three digits."""
    return f"{number:,}"


def real(value: float) -> str:
    """Write a number with three significant digits."""
    return f"{value:.3g}"


def brief(text: str) -> str:
    """Shorten a name of more than `LONGEST` characters, its end included."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"


FILTERS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (size, decibel, percent, grouped, real, brief)
}
