"""Latency of two models in one run, taken in turns so that a noisy machine disturbs both alike."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.analysis.bench import batch_of, take_turns
from ptq.models.sessions import run, session_of


@dataclass(frozen=True)
class Latency:
    """Median times of two models over interleaved rounds.

    Attributes:
        reference_ms: Float model, processor time of one inference, p50, milliseconds; 0 if too large to be timed.
        value_ms: Quantized model, likewise.
        num_rounds: Rounds measured after warm-up.
        batch: Leading extent of the first input.
    """

    reference_ms: float
    value_ms: float
    num_rounds: int
    batch: int

    @property
    def ratio(self) -> float:
        """Ratio of the quantized model's time to the float one's: below 1 is faster."""
        return self.value_ms / self.reference_ms if self.reference_ms > 0 else 1.0


def measure_latency(
    reference: str | Path | bytes,
    other: str | Path | bytes,
    feed: Mapping[str, NDArray[Any]],
    *,
    custom_ops: Sequence[str | Path] = (),
    budget_seconds: float = 2.0,
) -> Latency:
    """Time two models on one sample, one thread each.

    Args:
        reference: The float model.
        other: The quantized model.
        feed: One sample.
        custom_ops: Libraries the models need.
        budget_seconds: Roughly how long to measure.

    Returns:
        The medians.
    """
    opened = functools.partial(session_of, custom_ops=custom_ops, fixed_draws=False)
    with opened(reference) as left, opened(other) as right:
        calls = [functools.partial(run, session, dict(feed)) for session in (left, right)]
        _, processor = take_turns(calls, budget_seconds)
    a, b = (float(np.median(row)) * 1e3 for row in processor)
    return Latency(a, b, processor.shape[1], batch_of(feed))
