"""Ratios of energies in decibels."""

from __future__ import annotations

import numpy as np

NO_ERROR_DB = 200.0
"""Ratio that stands for no error at all: log of 0 has no place in a report."""


def decibels(signal: float, error: float) -> float:
    """Ratio of two energies, 10 log10(signal / error), within 200 dB either way; 200 dB stands for no error at all."""
    if not (np.isfinite(signal) and np.isfinite(error)):
        return -NO_ERROR_DB
    if error <= 0 or signal <= 0:
        return NO_ERROR_DB if error <= 0 else -NO_ERROR_DB
    return float(np.clip(10 * np.log10(signal / error), -NO_ERROR_DB, NO_ERROR_DB))
