"""Limits of settings, checked where they are set."""

from __future__ import annotations


def require_within(settings: object, **limits: tuple[float, float]) -> None:
    """Refuse settings outside their limits, NaN among them.

    Args:
        settings: Has the attributes that are named.
        limits: Name -> smallest and largest value.

    Raises:
        ValueError: Names the setting, its value and the limits.
    """
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {str(value)[:40]}; expected {low:g} to {high:g}")
