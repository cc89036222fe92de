"""Figures of the README: ours against onnxruntime's quantizer, in one run. `make bench`; needs the shared models.

python -m tests.bench [MODEL ...]

Latency is processor time of one thread, both files and the float model in turns, medians; the last column is ours over
onnxruntime's. Calibration cost is processor seconds and the process's peak memory, one fresh process per row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ptq.analysis.outcome import peak_rss_mb
from ptq.recipe import Recipe, Weights
from ptq.runtime import open_session
from ptq.weights import Rtn
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES, evaluator, limit

BATCH, ROUNDS = 32, 15
ROWS = {"ort": "onnxruntime", "ptq": "ptq", "fast": "ptq --fast", "ptq4": "ptq --bits 4"}
RECIPES = {
    "ptq": Recipe(),
    "fast": Recipe(weights=Weights(Rtn())),
    "ptq4": Recipe(weights=Weights(bits=4), accept_poor=True),
}


def main() -> None:
    """Print one table."""
    if not SHARED.is_dir():
        sys.exit("no shared models and data beside the checkout")
    table = Table(
        "model", "by", "SQNR dB", "agreement", "bytes", "CPU s", "peak MB", f"x float, batch {BATCH}", "x ORT"
    )
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in SAMPLES if name in sys.argv[1:]] or list(SAMPLES)
        files = {(by, name): Path(folder) / f"{name}.{by}.onnx" for name in names for by in ROWS}
        # All children first: a child's peak memory may start with what this process holds.
        costs = {(by, name): child(by, name, path) for (by, name), path in files.items()}
        for name in names:
            for row in compare(name, files, costs):
                table.add_row(*row)
    Console(width=170).print(table)


def compare(
    name: str, files: dict[tuple[str, str], Path], costs: dict[tuple[str, str], dict[str, float]]
) -> list[list[str]]:
    """Rows of one model: onnxruntime percentile, and ours."""
    workloads = evaluator(SHARED)
    own = {by: path for (by, model), path in files.items() if model == name}
    times = latencies(workloads, name, list(own.values()))
    rows = []
    for index, (by, path) in enumerate(own.items()):
        figures = workloads.evaluate(name, path, limit=limit(name))
        rows.append(
            [
                name,
                ROWS[by],
                f"{figures['sqnr_db']:.2f}",
                f"{figures.get('agreement', float('nan')):.4f}",
                str(figures["bytes"]),
                f"{costs[by, name]['cpu_s']:.1f}",
                f"{costs[by, name]['peak_rss_mb']:.0f}",
                f"{times[index + 1] / times[0]:.3f}",
                f"{times[index + 1] / times[1]:.3f}",
            ]
        )
    return rows


def child(by: str, name: str, path: Path) -> dict[str, float]:
    """Quantize in a process of its own."""
    command = [sys.executable, "-m", "tests.bench", by, name, str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(out.strip().splitlines()[-1]))


def quantize(by: str, name: str, path: Path) -> dict[str, Any]:
    """The child's job; data is prepared before the clock starts."""
    workloads = evaluator(SHARED)
    if by == "ort":
        cost = workloads.ort_baseline(name, str(path), "percentile", SAMPLES[name], True)
        return {**cost, "peak_rss_mb": peak_rss_mb()}
    import ptq

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "calib.npz"
        subprocess.run(
            [sys.executable, str(SHARED / "tools/workloads.py"), "calib", name, str(SAMPLES[name]), str(data)],
            check=True,
        )
        start = time.process_time()
        ptq.quantize(SHARED / f"models/{name}.onnx", data, RECIPES[by]).save(path)
        seconds = time.process_time() - start
    return {"cpu_s": seconds, "peak_rss_mb": peak_rss_mb()}


def latencies(workloads: Any, name: str, paths: list[Path]) -> list[float]:
    """Median processor time of the float model and of each file, taken in turns."""
    feeds, _ = workloads.evaluation(name, BATCH)
    feed = {key: value[:BATCH] for key, value in feeds.items()}
    sessions = [open_session(path) for path in (SHARED / f"models/{name}.onnx", *paths)]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS + 2):
        for session, row in zip(sessions, times, strict=True):
            start = time.process_time()
            session.run(None, feed)
            row.append(time.process_time() - start)
    return [float(np.median(row[2:])) for row in times]


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in ROWS:
        print(json.dumps(quantize(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))  # noqa: T201 - to the parent
    else:
        main()
