"""Seconds that long chains take, and how they grow: `python -m tests.trust.bench_width [nodes ...]`."""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from ptq.api import quantize
from tests.builders import random
from tests.trust.cases import proto_of

NODES = (5_000, 10_000, 20_000)
WIDTH, SAMPLES = 16, 4
OPERATORS = (
    "MatMul ({0}, w{1})",
    "Add ({0}, b{1})",
    "Relu ({0})",
    "Mul ({0}, b{1})",
    "Sigmoid ({0})",
)


def chain(num_nodes: int, num_weights: int = 8) -> onnx.ModelProto:
    """Products, sums and activations one after the other; weights are shared so that nodes alone grow."""
    names = ["x", *(f"v{i}" for i in range(num_nodes - 1)), "y"]
    nodes = [
        f"{names[i + 1]} = {OPERATORS[i % len(OPERATORS)].format(names[i], i // len(OPERATORS) % num_weights)}"
        for i in range(num_nodes)
    ]
    weights = {f"w{i}": random((WIDTH, WIDTH), i) / 4 for i in range(num_weights)}
    weights |= {f"b{i}": random((WIDTH,), 100 + i) / 4 for i in range(num_weights)}
    body = "\n".join(nodes)
    return proto_of(f"net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{\n{body}\n}}", weights)


def measure(num_nodes: int) -> dict[str, float]:
    """Seconds of each step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        onnx.save(chain(num_nodes), path)
        begun = [("read", time.perf_counter())]
        data = {"x": np.concatenate([random((1, WIDTH), seed) for seed in range(SAMPLES)])}
        result = quantize(path, data, progress=lambda step: begun.append((step, time.perf_counter())))
        begun.append(("write", time.perf_counter()))
        result.save(Path(folder) / "out.onnx")
        begun.append(("end", time.perf_counter()))
    return {step: after - at for (step, at), (_, after) in itertools.pairwise(begun)}


def main(sizes: list[int]) -> None:
    """Print a row for each size; the exponent is that of the last doubling, 1 is linear."""
    rows = {}
    for size in sizes:
        rows[size] = measure(size)
        steps = "  ".join(f"{step} {seconds:.1f}" for step, seconds in rows[size].items())
        print(f"{size:>7} nodes  {sum(rows[size].values()):7.1f} s   {steps}", flush=True)  # noqa: T201
    if len(sizes) > 1:
        small, large = sizes[-2:]
        for step, seconds in {**rows[large], "all": sum(rows[large].values())}.items():
            before = sum(rows[small].values()) if step == "all" else rows[small][step]
            exponent = math.log(seconds / before) / math.log(large / small)
            print(f"{step:>10}: {seconds:7.2f} s, exponent {exponent:.2f}")  # noqa: T201


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or list(NODES))
