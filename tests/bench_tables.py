"""Accuracy by setting, measured as a user would: `ptq quantize` on real models, then their independent evaluator.

python -m tests.bench_tables bits        word lengths and methods
python -m tests.bench_tables split       coarse & fine splitting of a re-parameterised network, with latency
python -m tests.bench_tables points      multipoint at several budgets
python -m tests.bench_tables observers   activation ranges, all models
python -m tests.bench_tables portable    ways not to overflow 16-bit sums, all models; to be run on x86 without VNNI
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import latencies
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES, evaluator, limit

Setting = tuple[str, str]
"""Model, options."""

SOLVERS = ("gpfq", "gptq", "qronos")
BITS: list[Setting] = [
    *(("resnet20", f"--weights {m} --bits {b}") for b, m in itertools.product((4, 3, 2), ("rtn", *SOLVERS))),
    *(("resnet20", f"--weights gptq --bits {b} --weight-only") for b in (5, 4, 3)),
    *((name, f"--weights {m} --bits 4") for name in ("mobilenet_vww", "squeezenet") for m in SOLVERS),
]
SPLIT: list[Setting] = [
    ("repvgg_cifar", options)
    for options in (
        "--fast --split never",
        "--fast --split center",
        "--fast --granularity per-tensor --split never",
        "--fast --granularity per-tensor",
        *(f"--weights gptq --bits {bits} --split {split}" for bits in (4, 3, 2) for split in ("never", "auto")),
    )
]
POINTS: list[Setting] = [
    (name, f"--weights gptq --bits {bits} --extra-macs {share}")
    for name, bits in (("squeezenet", 4), ("mobilenet_vww", 4), ("resnet20", 4), ("resnet20", 3), ("resnet20", 2))
    for share in ("0%", "2%", "5%", "10%")
]
PORTABLE = ("--target cpu-x86", "--target portable --bits 7", "--target portable")
NAMES = ("resnet20", "repvgg_cifar", "squeezenet", "mobilenet_vww", "minilm")
OBSERVERS = ("minmax", "percentile", "mse", "kl", "kl_cfws", "auto")


def measure(settings: Iterable[Setting], folder: Path) -> Iterator[tuple[Setting, dict[str, Any], Path]]:
    """Quantize, evaluate, and say what it took."""
    workloads = evaluator(SHARED)
    for index, (name, options) in enumerate(settings):
        data, out = folder / f"{name}.npz", folder / f"{index}.onnx"
        if not data.exists():
            tool = [sys.executable, str(SHARED / "tools/workloads.py"), "calib", name, str(SAMPLES[name]), str(data)]
            subprocess.run(tool, check=True, capture_output=True)
        model = str(SHARED / f"models/{name}.onnx")
        command = [sys.executable, "-m", "ptq", "quantize", model, "--data", str(data), "-q", "-o", str(out)]
        command.append("--accept-poor")
        before = _cpu_of_children()
        subprocess.run([*command, *options.split()], check=True)
        found = workloads.evaluate(name, str(out), limit=limit(name))
        card = json.loads(out.with_name(f"{out.name}.card.json").read_text())
        weights = sum(row["num_weights"] for row in card["layers"])
        found |= {"cpu": _cpu_of_children() - before, "codes": card["storage"]["codes"] * 8 / weights}
        yield (name, options), found | card["quantization"]["extra_macs"], out


def table(settings: list[Setting], *, timed: bool = False) -> None:
    """Print one line per setting; `timed` compares latencies with that of the first setting."""
    heads = ["model", "options", "SQNR dB", "agreement", "top-1", "float", "bytes", "bits / weight", "extra MACs"]
    lines, paths = [], []
    with tempfile.TemporaryDirectory() as folder:
        for (name, options), found, path in measure(settings, Path(folder)):
            scores = [f"{found[key]:.4f}" if key in found else "-" for key in ("agreement", "top1", "top1_float")]
            sizes = [str(found["bytes"]), f"{found['codes']:.3f}", f"{found['share']:.2%}", f"{found['executed']:.2%}"]
            lines.append([name, options, f"{found['sqnr_db']:.2f}", *scores, *sizes, f"{found['cpu']:.1f}"])
            paths.append(path)
        if timed:
            plain, *times, again = latencies(evaluator(SHARED), settings[0][0], [*paths, paths[0]])
            for line, time in zip(lines, times, strict=True):
                line += [f"{time / plain:.3f}", f"{time / times[0]:.3f}"]
            heads_timed = ["latency / float", f"/ first (A/A {again / times[0]:.3f})"]
    _print([*heads, "executed", "CPU s", *(heads_timed if timed else [])], lines)


def observers() -> None:
    """SQNR by observer; default weights."""
    settings = [(name, f"--activations {observer}") for name in NAMES for observer in OBSERVERS]
    with tempfile.TemporaryDirectory() as folder:
        found = {key: f"{figures['sqnr_db']:.2f}" for key, figures, _ in measure(settings, Path(folder))}
    lines = [[name, *(found[name, f"--activations {observer}"] for observer in OBSERVERS)] for name in NAMES]
    _print(["SQNR dB", *OBSERVERS], lines)


def portable() -> None:
    """SQNR and latency by target, beside onnxruntime's quantizer, which does not ask for the processor."""
    lines = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found = list(measure([(name, options) for options in PORTABLE], Path(folder)))
            peer = Path(folder) / "ort.onnx"
            tool = [sys.executable, str(SHARED / "tools/workloads.py"), "ort", name, str(peer)]
            subprocess.run([*tool, "--method", "percentile", "--u8"], check=True, capture_output=True)
            figures = [evaluator(SHARED).evaluate(name, str(peer), limit=limit(name)), *(each[1] for each in found)]
            plain, *times = latencies(evaluator(SHARED), name, [peer, *(each[2] for each in found)])
        lines.append([name, *(f"{own['sqnr_db']:.2f}, {t / plain:.3f}" for own, t in zip(figures, times, strict=True))])
    _print(["SQNR dB, latency / float", "onnxruntime", *PORTABLE], lines)


def _print(heads: list[str], lines: list[list[str]]) -> None:
    drawn = Table(*heads)
    for line in lines:
        drawn.add_row(*line)
    Console(width=190).print(drawn)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    tables = {
        "bits": lambda: table(BITS),
        "split": lambda: table(SPLIT, timed=True),
        "points": lambda: table(POINTS),
        "observers": observers,
        "portable": portable,
    }
    tables[sys.argv[1]]()
