"""Never slower: the plan that `--optimize latency` finds beside float and all integers, one thread, in turns.

python -m tests.bench_latency [MODEL...] prints the table of the README; needs the models beside the checkout.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

import ptq
from ptq.analysis.bench import Setting, bench
from ptq.calibration.reader import open_data
from ptq.calibration.sample import repeated
from ptq.models.load import load_model
from ptq.models.source import input_specs
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES, evaluator

BATCHES = (1, 32)
SECONDS = 12.0


def rows(name: str, folder: Path) -> list[str]:
    """Of one model, a row per batch."""
    source, data = SHARED / f"models/{name}.onnx", folder / "calibration.npz"
    np.savez(data, **evaluator(SHARED).calib(name, SAMPLES[name]))
    whole = ptq.quantize(source, data, replace(ptq.Recipe(), optimize="integers"))
    (folder / "whole.onnx").write_bytes(whole.delivery.data or b"")
    first = next(iter(open_data(str(data), input_specs(load_model(source)))))
    lines = []
    for batch in BATCHES:
        recipe = replace(ptq.Recipe(), optimize="latency", latency_batch=batch)
        found = ptq.quantize(source, data, recipe)
        (folder / "found.onnx").write_bytes(found.delivery.data or b"")
        paths = [Path(source), folder / "whole.onnx", folder / "found.onnx"]
        timed = bench(paths, repeated(first.feed, batch), Setting(budget_seconds=SECONDS))
        floats, integers, ours, again = (row.cpu for row in timed.timings)
        report = found.report
        how = "weights alone" if report.recipe["weight_only"] else f"{len(report.layers)} of {len(whole.report.layers)}"
        sqnr = whole.report.proof.comparison.sqnr_db, report.proof.comparison.sqnr_db
        ratios = again / floats, integers / floats, ours / floats, ours / min(floats, integers)
        figures = [f"{floats:.3f}", *(f"{ratio:.3f}" for ratio in ratios), how, *(f"{each:.2f}" for each in sqnr)]
        lines.append(f"| {name} | {batch} | {' | '.join(figures)} |")
    return lines


def main() -> None:
    """Print the table."""
    np.seterr(all="ignore")
    head = "model|batch|float ms|float again|all integers / float|chosen / float|chosen / better of both"
    head += "|layers on integers|SQNR dB, all integers|SQNR dB, chosen"
    say = Console(width=250, soft_wrap=True, highlight=False).print
    say(f"|{head}|\n|{'---|' * len(head.split('|'))}")
    for name in sys.argv[1:] or SAMPLES:
        with TemporaryDirectory() as folder:
            say("\n".join(rows(name, Path(folder))), markup=False)


if __name__ == "__main__":
    main()
