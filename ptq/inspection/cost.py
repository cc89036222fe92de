"""Cost of a run of `ptq quantize` with default flags, roughly: its steps counted, one float run measured."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.split import EVERY, MAX_HELD
from ptq.models.sessions import run, session_of
from ptq.models.source import weight_bytes

START_SECONDS, SECONDS_PER_VALUE, SECONDS_PER_WEIGHT_BYTE = 1.5, 7e-9, 5e-8
SECONDS_PER_CONV, SECONDS_PER_PRODUCT = 0.07, 0.03
TIMES, LONG_SECONDS = 2, 0.5
TIMED_RUNS, TIMED_SECONDS = 100, 2.0
"""What the steps were seen to take on five networks from 0.3 to 23 million weights, one core."""

BASE_BYTES, WEIGHT_COPIES, VALUE_COPIES, PENDING_BYTES = 190 * 2**20, 7, 6, 2**20
SAMPLES_AHEAD, MOST_AHEAD_BYTES = 96, 320 * 2**20
"""Memory that a run takes, in bytes and copies: above the peaks of those networks by up to a third."""


@dataclass(frozen=True)
class Work:
    """Amount of work in a run.

    Attributes:
        num_samples: Calibration set, held-out samples included.
        values: Numbers that the calibration looks at in one sample.
        num_observed: Tensors that they are in.
        num_convs: Convolutions that become integers.
        num_products: Other layers that do.
        prepare_seconds: What preparing the model took.
        run_seconds: One sample through the float model, one thread.
        solve_seconds: Solving of weights.
    """

    num_samples: int
    values: int
    num_observed: int
    num_convs: int
    num_products: int
    prepare_seconds: float
    run_seconds: float
    solve_seconds: float = 0.0


def seconds_for(work: Work, model: ir.Model) -> float:
    """Estimate the wall time of the whole run."""
    checked = min(work.num_samples // EVERY, MAX_HELD)
    per_sample = work.run_seconds / _workers() + work.values * SECONDS_PER_VALUE
    layers = work.num_convs * SECONDS_PER_CONV + work.num_products * SECONDS_PER_PRODUCT
    timed = min(TIMED_RUNS * work.run_seconds, TIMED_SECONDS)
    fixed = START_SECONDS + work.prepare_seconds + weight_bytes(model) * SECONDS_PER_WEIGHT_BYTE
    return work.solve_seconds + fixed + layers + work.num_samples * per_sample + 2 * checked * work.run_seconds + timed


def ram_bytes_for(work: Work, model: ir.Model, feed: Mapping[str, NDArray[Any]]) -> int:
    """Estimate the resident memory that the run hardly exceeds."""
    sample = sum(array.nbytes for array in feed.values())
    in_flight = 4 * work.values * (2 * _workers() + VALUE_COPIES) + PENDING_BYTES * work.num_observed
    waiting = min(sample * min(work.num_samples, SAMPLES_AHEAD), MOST_AHEAD_BYTES)
    return BASE_BYTES + WEIGHT_COPIES * weight_bytes(model) + in_flight + waiting


def run_seconds(model: ir.Model, feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()) -> float:
    """Measure the time of one sample: the better of two runs, as only the first prepares; of a long one, the first."""
    times = list[float]()
    with session_of(model, custom_ops=custom_ops) as session:
        while not times or (len(times) < TIMES and times[0] < LONG_SECONDS):
            start = time.perf_counter()
            run(session, dict(feed))
            times.append(time.perf_counter() - start)
    return min(times)


def _workers() -> int:
    return os.cpu_count() or 1
