"""Operators of domain ai.ptq against onnxruntime's own: one thread, processor time, in turns, medians.

python -m tests.bench_native     single layers, then whole models (those need the developers' shared folder)
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

import ptq
from ptq.runtime import native_path, native_status, open_session
from tests.builders import model_from_text, native_conv, random
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES, evaluator

ROUNDS, WARM_UP = 101, 10
LAYERS = {  # features, channels per group, kernel; groups, stride, size
    "depthwise 3x3, 144 channels of 56x56": ((144, 1, 3, 3), 144, 1, 56),
    "depthwise 3x3, 576 channels of 14x14": ((576, 1, 3, 3), 576, 1, 14),
    "depthwise 5x5 / 2, 96 channels of 28x28": ((96, 1, 5, 5), 96, 2, 28),
    "3x3 in 32 groups, 128 channels of 56x56": ((128, 4, 3, 3), 32, 1, 56),
    "3x3 in 8 groups, 64 channels of 56x56": ((64, 8, 3, 3), 8, 1, 56),
    "3x3 / 2 of an image, 32 features of 224x224": ((32, 3, 3, 3), 1, 2, 224),
    "7x7 / 2 of an image, 64 features of 224x224": ((64, 3, 7, 7), 1, 2, 224),
}
MODELS = ("mobilenet_vww", "squeezenet", "resnet20", "repvgg_cifar")


def medians(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Median processor time of each call, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(WARM_UP + ROUNDS):
        for call, row in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            row.append(time.process_time() - start)
    return [float(np.median(row[WARM_UP:])) for row in times]


def layers(library: Path) -> Table:
    """Float, the operator's body in onnxruntime, and its kernel."""
    table = Table("layer", "float ms", "onnxruntime int8, x float", "native, x float", "A/A")
    for name, (shape, groups, stride, size) in LAYERS.items():
        pads, strides, channels = [shape[2] // 2] * 4, [stride] * 2, shape[1] * groups
        text = f"""
        m (float[N, {channels}, {size}, {size}] x) => (float[N, {shape[0]}, H, W] y) {{
            y = Conv <pads = {pads}, strides = {strides}, group = {groups}> (x, w, b)
        }}"""
        model = model_from_text(text, {"w": random(shape), "b": random(shape[:1])})
        plain = open_session(ir.to_proto(model).SerializeToString())
        given = {"group": groups, "shape": list(shape), "strides": strides, "dilations": [1, 1], "pads": pads}
        data, codes = native_conv({**given, "input": [1, size, size], "seed": 0, "bias": True})
        sessions = [open_session(data), open_session(data, custom_ops=(library,))]
        first = functools.partial(plain.run, None, {"x": random((1, channels, size, size))})
        base, *times, again = medians([first, *(functools.partial(s.run, None, {"x": codes}) for s in sessions), first])
        table.add_row(name, f"{base * 1e3:.3f}", *(f"{base / t:.2f}" for t in times), f"{again / base:.3f}")
    return table


def models(library: Path) -> Table:
    """Whole networks: float, the default target, the native one without and with the library."""
    table = Table("model", "batch", "float ms", "int8, x float", "native body, x float", "native, x float", "A/A")
    workloads = evaluator(SHARED)
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            feed = workloads.calib(name, SAMPLES[name])
            path = SHARED / f"models/{name}.onnx"
            paths = [Path(folder) / f"{name}.{target}.onnx" for target in ("cpu-x86", "native")]
            for out in paths:
                ptq.quantize(path, feed, ptq.Recipe(target=out.suffixes[0][1:])).save(out)
            sessions = [open_session(each) for each in (path, *paths)] + [open_session(paths[1], custom_ops=(library,))]
            for batch in (1, 32):
                part = {key: value[:batch] for key, value in feed.items()}
                base, *times, again = medians([functools.partial(s.run, None, part) for s in (*sessions, sessions[0])])
                figures = [f"{base * 1e3:.3f}", *(f"{base / t:.2f}" for t in times), f"{again / base:.3f}"]
                table.add_row(name, str(batch), *figures)
    return table


def main() -> None:
    """Print both tables."""
    console, library = Console(width=150), native_path()
    console.print(native_status())
    if library is None:
        return
    console.print(layers(library))
    if SHARED.exists():
        console.print(models(library))


if __name__ == "__main__":
    main()
