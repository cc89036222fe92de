"""Benchmark of models side by side, and profiles of where their time goes."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.errors import InputError
from ptq.files.scratch import scratch_folder
from ptq.models.sessions import run, session_of
from ptq.runtime.opening import open_session

MIN_ROUNDS, MAX_ROUNDS, WARM_UP, FEWEST = 7, 101, 2, 3
PROFILED_RUNS = 10


@dataclass(frozen=True)
class Timing:
    """Times of one model over interleaved rounds, milliseconds per inference.

    Attributes:
        name: The model.
        p50: Median wall time.
        p90: Wall time that nine of ten rounds stay below.
        cpu: Median processor time, all threads.
        ratio: Median processor time over that of the first model.
    """

    name: str
    p50: float
    p90: float
    cpu: float
    ratio: float


@dataclass(frozen=True)
class Bench:
    """Timings of several models on one input.

    Attributes:
        timings: In the order given, then the first model once more: how far its ratio is from 1 is the noise.
        num_rounds: Measured after warm-up.
        batch: Leading extent of the first input.
        num_threads: Threads inside one operator.
    """

    timings: tuple[Timing, ...]
    num_rounds: int
    batch: int
    num_threads: int


@dataclass(frozen=True)
class Setting:
    """Settings under which models are timed.

    Attributes:
        custom_ops: Libraries to register.
        num_threads: Threads inside one operator.
        budget_seconds: Roughly how long to measure.
    """

    custom_ops: tuple[str | Path, ...] = ()
    num_threads: int = 1
    budget_seconds: float = 5.0


def take_turns(calls: Sequence[Callable[[], object]], budget_seconds: float) -> NDArray[np.float64]:
    """Call one after the other, round after round, so that a noisy machine disturbs all alike.

    Args:
        calls: What to time.
        budget_seconds: Roughly how long; at least 7 rounds, of very slow calls 3, at most 101.

    Returns:
        Wall and processor time in seconds. Shape [2, calls, rounds].
    """
    start = time.perf_counter()
    for call in [*calls] * WARM_UP:  # first runs allocate
        if time.perf_counter() < start + budget_seconds:
            call()
    rounds: list[list[tuple[float, float]]] = []
    end = time.perf_counter() + budget_seconds
    while len(rounds) < (MIN_ROUNDS if time.perf_counter() < end + budget_seconds else FEWEST) or (
        time.perf_counter() < end and len(rounds) < MAX_ROUNDS
    ):
        row = []
        for call in calls:
            wall, processor = time.perf_counter(), time.process_time()
            call()
            row.append((time.perf_counter() - wall, time.process_time() - processor))
        rounds.append(row)
    return np.array(rounds).transpose(2, 1, 0)


def bench(models: Sequence[Path], feed: Mapping[str, NDArray[Any]], setting: Setting) -> Bench:
    """Time models on one input.

    Args:
        models: Their paths; the first is what the others are compared with.
        feed: The input.
        setting: Libraries and threads.

    Returns:
        The timings.

    Raises:
        InputError: A model does not load or does not run on the input.
    """
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(
                session_of(path, custom_ops=setting.custom_ops, num_threads=setting.num_threads, fixed_draws=False)
            )
            for path in (*models, models[0])
        ]
        calls = [functools.partial(run, session, dict(feed)) for session in sessions]
        wall, processor = take_turns(calls, setting.budget_seconds) * 1e3
    medians = np.median(processor, axis=1)
    names = [path.name for path in models] + [f"{models[0].name} again"]
    timings = tuple(
        Timing(
            name,
            float(np.median(wall[i])),
            float(np.percentile(wall[i], 90)),
            float(medians[i]),
            float(medians[i] / max(medians[0], 1e-9)),
        )
        for i, name in enumerate(names)
    )
    return Bench(timings, wall.shape[1], batch_of(feed), setting.num_threads)


def batch_of(feed: Mapping[str, NDArray[Any]]) -> int:
    """Return the extent of the first input's first axis; 1 where there is none, as in models without inputs."""
    first = next(iter(feed.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def profile(
    model: str | Path | bytes, feed: Mapping[str, NDArray[Any]], setting: Setting
) -> dict[str, tuple[int, float]]:
    """Measure where a model's time goes, operator by operator.

    Args:
        model: Its path, or its bytes.
        feed: The input.
        setting: Libraries and threads.

    Returns:
        Operator -> how many nodes, and their time in milliseconds per inference; the slowest first.
    """
    with scratch_folder() as folder:
        session = open_session(
            model,
            custom_ops=setting.custom_ops,
            num_threads=setting.num_threads,
            profile_prefix=Path(folder) / "profile",
        )
        for _ in range(PROFILED_RUNS):
            run(session, dict(feed))
        operators = read_profile(Path(session.end_profiling()))
    return {name: (count, total / PROFILED_RUNS) for name, (count, total) in operators.items()}


def read_profile(path: Path) -> dict[str, tuple[int, float]]:
    """Read a profile that onnxruntime wrote.

    Args:
        path: The file that `end_profiling` names.

    Returns:
        Operator -> how many nodes, and their time in milliseconds over all runs, by the median of each node, as first
        runs are slow; the slowest first.
    """
    try:
        events = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"onnxruntime could not write its profile to {path.parent}: {error}") from error
    durations: dict[tuple[str, str], list[int]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    operators: dict[str, tuple[int, float]] = {}
    for (operator, _), spent in durations.items():
        nodes, total = operators.get(operator, (0, 0.0))
        operators[operator] = (nodes + 1, total + float(np.median(spent)) * len(spent) / 1e3)
    return dict(sorted(operators.items(), key=lambda item: -item[1][1]))
