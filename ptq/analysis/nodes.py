"""Time of every node of a graph, as onnxruntime's profile tells it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.analysis.bench import MAX_ROUNDS, MIN_ROUNDS, Setting
from ptq.core.errors import InputError
from ptq.files.scratch import scratch_folder
from ptq.models.sessions import run, session_of
from ptq.runtime.opening import open_session

KERNEL = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """Time of one node.

    Attributes:
        name: The node; after a fusion that of one of those that became one, with something appended.
        op_type: The operator.
        microseconds: Per inference, wall time.
    """

    name: str
    op_type: str
    microseconds: float


def node_times(model: bytes, feed: Mapping[str, NDArray[Any]], setting: Setting) -> tuple[NodeTime, ...]:
    """Measure the time of every node.

    Args:
        model: Serialized model.
        feed: The input.
        setting: Libraries and threads, and roughly how long to measure.

    Returns:
        In the order in which they run. The mean of the faster half of the runs: others were disturbed.

    Raises:
        InputError: The model does not run, or the profile cannot be written.
    """
    with session_of(model, custom_ops=setting.custom_ops, num_threads=setting.num_threads) as session:
        run(session, dict(feed))
        start = time.perf_counter()
        run(session, dict(feed))
        seconds = time.perf_counter() - start
    num_runs = int(min(max(setting.budget_seconds / max(seconds, 1e-6), MIN_ROUNDS), 2 * MAX_ROUNDS))
    spent = dict[tuple[str, str], list[float]]()
    for event in _events(model, feed, setting, num_runs):
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            key = event["name"].removesuffix(KERNEL), event["args"]["op_name"]
            spent.setdefault(key, []).append(event["dur"])
    return tuple(NodeTime(*key, float(np.mean(np.sort(each)[: (len(each) + 1) // 2]))) for key, each in spent.items())


def _events(model: bytes, feed: Mapping[str, NDArray[Any]], setting: Setting, num_runs: int) -> list[Any]:
    with scratch_folder() as folder:
        session = open_session(
            model,
            custom_ops=setting.custom_ops,
            num_threads=setting.num_threads,
            profile_prefix=Path(folder) / "profile",
        )
        for _ in range(num_runs):
            run(session, dict(feed))
        try:
            return list(json.loads(Path(session.end_profiling()).read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"onnxruntime could not write its profile to {folder}: {error}") from error
