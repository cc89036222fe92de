"""Costs of the solvers, as ratios within one run: depth, the textbook loop, and path following against rounding.

python -m tests.bench_solvers depth      time of a chain of 8, 16 and 32 equal convolutions
python -m tests.bench_solvers textbook   one 256x256x3x3 convolution against the loop on raw samples
python -m tests.bench_solvers layers     path following against rounding with the same step (needs shared models)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import ptq
from ptq.analysis.outcome import peak_rss_mb
from ptq.core.encoding import WeightEncoding
from ptq.core.layer_statistics import LayerStatistics, MomentSum, add_diagonal
from ptq.core.problem import LayerProblem, Needs
from ptq.core.spec import INT8_WEIGHT, PerAxis
from ptq.core.unfold import Unfold
from ptq.recipe import Weights
from ptq.weights import Gpfq, Gptq
from ptq.weights._grid_search import best_scale
from ptq.weights._problem import Candidate, GroupedProblem
from ptq.weights._solve import in_order
from tests.builders import feeds, model_from_text, random
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES

CHANNELS, SIDE, IMAGES, BATCH = 256, 14, 512, 8
GEOMETRY = Unfold((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
print_line = Console(width=140).print


def depth(repeats: int = 3) -> None:
    """Time of a chain against its length: linear means 32 layers take at most 4.6 times as long as 8."""
    times = {layers: min(_chain(layers) for _ in range(repeats)) for layers in (8, 16, 32)}
    for layers, seconds in times.items():
        print_line(f"{layers} layers: {seconds:.2f} s, {seconds / times[8]:.2f} times 8 layers")


def _chain(layers: int) -> float:
    nodes = "\n".join(f"a{i} = Conv <pads = [1, 1, 1, 1]> (r{i}, w{i}) r{i + 1} = Relu (a{i})" for i in range(layers))
    text = f"net (float[N, 32, 16, 16] r0) => (float[N, 32, 16, 16] r{layers}) {{ {nodes} }}"
    model = model_from_text(text, {f"w{i}": random((32, 32, 3, 3), i, 0.08) for i in range(layers)})
    data = [{"r0": feed["x"]} for feed in feeds(256, 32, 16, 16)]
    stamps: list[tuple[str, float]] = []
    ptq.quantize(
        model,
        data,
        ptq.Recipe(weights=Weights(Gptq(), 4)),
        progress=lambda step: stamps.append((step, time.perf_counter())),
    )
    at = dict(stamps)
    return at["lower"] - at["solve"]


def textbook() -> None:
    """Time and peak memory, each side in a process of its own."""
    sides = {}
    for side in ("gram", "loop"):
        command = [sys.executable, "-m", "tests.bench_solvers", side]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sides[side] = json.loads(out.strip().splitlines()[-1])
        print_line(f"{side}: {sides[side]['seconds']:.1f} s, {sides[side]['mb']:.0f} MB")
    speed, memory = (sides["loop"][key] / sides["gram"][key] for key in ("seconds", "mb"))
    print_line(f"the loop takes {speed:.1f} times as long and {memory:.1f} times the memory")


def _batches() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Correlated, non-negative inputs as rows, float and slightly wrong."""
    mixing = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS)).astype(np.float32) / 16
    for batch in range(IMAGES // BATCH):
        rng = np.random.default_rng(batch)
        noise = rng.standard_normal((BATCH, CHANNELS, SIDE * SIDE), np.float32)
        original = np.maximum(mixing @ noise, 0).reshape(BATCH, CHANNELS, SIDE, SIDE)
        given = np.maximum(original + 0.05 * rng.standard_normal(original.shape, np.float32), 0)
        yield GEOMETRY.rows(original), GEOMETRY.rows(given)


def _layer() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The weight, and a step for four bits per row."""
    weight = random((CHANNELS, CHANNELS * 9), 1)
    return weight, np.abs(weight).max(1).astype(np.float64) / 7


def gram() -> tuple[float, NDArray[np.float64]]:
    """Ours: moments batch by batch, then the blocked recursion. Every position counts."""
    weight, scale = _layer()
    seconds, seen = 0.0, MomentSum()
    for original, given in _batches():
        start = time.perf_counter()
        seen.add(LayerStatistics.of(given, weight, original))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    spec = replace(INT8_WEIGHT, num_bits=4, granularity=PerAxis(0))
    problem = GroupedProblem.of(LayerProblem("conv", weight, spec, seen.value()))
    found = Gpfq()._follow(problem, problem.grid(scale[None, :, None]))
    return seconds + time.perf_counter() - start, found.levels[0]


def loop() -> tuple[float, NDArray[np.float64]]:
    """The textbook: all rows in memory, one rank-one update per column, in float64."""
    weight, scale = _layer()
    positions = IMAGES * SIDE * SIDE
    rows, wrong = (np.empty((weight.shape[1], positions)) for _ in range(2))
    for index, (original, given) in enumerate(_batches()):
        part = slice(index * BATCH * SIDE * SIDE, (index + 1) * BATCH * SIDE * SIDE)
        rows[:, part], wrong[:, part] = original[0].T, given[0].T
    start = time.perf_counter()
    u, levels = np.zeros((CHANNELS, positions)), np.zeros(weight.shape)
    for t in range(weight.shape[1]):
        u += np.outer(weight[:, t], rows[t])
        target = (u @ wrong[t]) / (wrong[t] @ wrong[t])
        levels[:, t] = np.clip(np.rint(target / scale), -7, 7)
        u -= np.outer(levels[:, t] * scale, wrong[t])
    return time.perf_counter() - start, levels


@dataclass(frozen=True)
class Probe:
    """Path following that notes how it compares with rounding on the same step."""

    needs = Needs.MOMENTS

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Solve by `Gpfq` and print a line where rounding was better."""
        grouped = GroupedProblem.of(problem)
        scale = best_scale(grouped)
        rounded = grouped.rounded(grouped.weight, scale)
        followed = in_order(grouped, scale, Gpfq()._follow, Gpfq().order)
        chosen = Gpfq().quantize(problem)
        own = np.broadcast_to(chosen.scale, scale.size).astype(np.float64).reshape(scale.shape)
        final = Candidate(chosen.codes.astype(np.float64).reshape(grouped.weight.shape), own)
        asked = grouped.target_correlation.transpose(0, 2, 1)
        best = np.linalg.solve(add_diagonal(grouped.gram, np.full((len(asked), 1), 1e-12)), asked).transpose(0, 2, 1)
        least = float(grouped.error(Candidate(best, np.ones_like(scale))).sum())  # what real numbers could reach
        COMPARED.append(
            (problem.name, *(float(grouped.error(each).sum()) - least for each in (rounded, followed, final)))
        )
        return chosen


COMPARED: list[tuple[str, float, float, float]] = []


def layers() -> None:
    """Layers of the shared models where path following errs more than rounding with the same step."""
    for name, count in SAMPLES.items():
        if name == "minilm":
            continue  # no convolution; its layers are products
        for bits in (4, 3):
            COMPARED.clear()
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "calib.npz"
                tool = [sys.executable, str(SHARED / "tools/workloads.py"), "calib", name, str(count), str(data)]
                subprocess.run(tool, check=True, capture_output=True)
                recipe = ptq.Recipe(weights=Weights(Probe(), bits))  # type: ignore[arg-type]
                ptq.quantize(SHARED / f"models/{name}.onnx", data, recipe)
            plain = [layer for layer, rounded, followed, _ in COMPARED if followed > rounded * (1 + 1e-9)]
            polished = [layer for layer, rounded, _, after in COMPARED if after > rounded * (1 + 1e-9)]
            ratio = np.median([after / rounded for _, rounded, _, after in COMPARED])
            print_line(
                f"{name} {bits} bits, {len(COMPARED)} layers: worse than rounding {plain or 'none'}, polished "
                f"{polished or 'none'}; median excess error {ratio:.3f} of rounding's"
            )


if __name__ == "__main__":
    command = sys.argv[1]
    if command in ("gram", "loop"):
        seconds, levels = (gram if command == "gram" else loop)()
        print_line(json.dumps({"seconds": seconds, "mb": peak_rss_mb(), "sum": float(levels.sum())}))
    else:
        {"depth": depth, "textbook": textbook, "layers": layers}[command]()
