"""Counts of channels that convolutions like: time per product, over that of 64 channels, one thread.

python -m tests.bench_channels prints the table that `Target.channel_lanes` is from.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from rich.console import Console

import ptq
from ptq.analysis.bench import Setting, bench
from ptq.recipe import Weights
from ptq.weights import Rtn
from tests.builders import model_from_text, random

COUNTS = (64, 63, 60, 56, 52, 48, 40, 36, 32)
SIDE, SECONDS = 28, 3.0


def stack(channels: int, side: int) -> ir.Model:
    """Three convolutions, 1 x 1 and 3 x 3 depthwise between, as mobile networks have them."""
    text = f"""
    stack (float[1, 32, {side}, {side}] x) => (float[1, 32, {side}, {side}] y) {{
        a = Conv (x, first)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, middle)
        d = Relu (c)
        e = Conv <group = {channels}, pads = [1, 1, 1, 1]> (d, apart)
        f = Relu (e)
        y = Conv (f, last)
    }}"""
    shapes = {
        "first": (channels, 32, 1, 1),
        "middle": (channels, channels, 3, 3),
        "apart": (channels, 1, 3, 3),
        "last": (32, channels, 1, 1),
    }
    return model_from_text(text, {name: random(shape, 1) for name, shape in shapes.items()})


def products(channels: int) -> int:
    """Products per position."""
    return 32 * channels + 9 * channels**2 + 9 * channels + 32 * channels


def main() -> None:
    """Print the table."""
    say = Console(width=200, soft_wrap=True, highlight=False).print
    with TemporaryDirectory() as folder:
        floats, integers = [], []
        data = {"x": random((16, 32, SIDE, SIDE), 2)}
        for channels in COUNTS:
            floats.append(Path(folder) / f"{channels}.onnx")
            ir.save(stack(channels, SIDE), floats[-1])
            integers.append(Path(folder) / f"{channels}.int8.onnx")
            recipe = ptq.Recipe(weights=Weights(Rtn()), squeeze="never")
            integers[-1].write_bytes(ptq.quantize(floats[-1], data, recipe).delivery.data or b"")
        feed, setting = {"x": data["x"][:1]}, Setting(budget_seconds=SECONDS * len(COUNTS))
        times = [
            [row.cpu for row in bench(paths, feed, setting).timings[: len(COUNTS)]] for paths in (floats, integers)
        ]
    say("| channels | products | float | 8 bits |\n|---|---|---|---|")
    for index, channels in enumerate(COUNTS):
        ratios = [f"{each[index] / each[0]:.2f}" for each in times]
        say(f"| {channels} | {products(channels) / products(COUNTS[0]):.2f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
