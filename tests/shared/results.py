"""What real models reach, in one file that the floors of the tests come from.

`python -m tests.shared.results [MODEL ...]` measures the runs below, each for the processors that differ, and writes
`results.json`. Figures that fall by more than `SLACK_DB` fail; figures that rise are written anew.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ptq
from ptq.recipe import Recipe, Weights
from ptq.weights import Gptq, Rtn
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES, evaluator, limit

FILE = Path(__file__).with_name("results.json")
TARGETS = ("cpu-x86", "portable", "cpu-arm")
SLACK_DB = 0.5
"""What rounding in another order, by another release or processor, may move."""

RUNS = {
    "W8A8": Recipe(weights=Weights(Gptq())),
    "W8A8 rtn": Recipe(weights=Weights(Rtn())),
    "W4A8 gptq": Recipe(weights=Weights(Gptq(), bits=4)),
}
"""Default settings, the same with --fast, and short words."""


Figures = dict[str, float]


def results() -> dict[str, dict[str, dict[str, Figures]]]:
    """Figures by run, model and target."""
    found: dict[str, dict[str, dict[str, Figures]]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def measure(shared: Path, name: str, recipe: Recipe, folder: Path) -> tuple[ptq.Result, Figures]:
    """Quantize a model on its calibration set and let the evaluator judge the file."""
    workloads: Any = evaluator(shared)
    result = ptq.quantize(shared / f"models/{name}.onnx", workloads.calib(name, SAMPLES[name]), recipe)
    result.save(folder / "q.onnx")
    figures = workloads.evaluate(name, folder / "q.onnx", limit=limit(name))
    return result, {key: value for key, value in figures.items() if key in ("sqnr_db", "agreement", "bytes")}


def main() -> None:
    """Measure and write."""
    known = results()
    for name in [name for name in SAMPLES if name in sys.argv[1:]] or list(SAMPLES):
        for run, recipe in RUNS.items():
            for target in TARGETS:
                with TemporaryDirectory() as folder:
                    _, figures = measure(SHARED, name, replace(recipe, target=target), Path(folder))
                rounded = {key: round(value, 4) for key, value in figures.items()}
                known.setdefault(run, {}).setdefault(name, {})[target] = rounded
                print(run, name, target, rounded, flush=True)  # noqa: T201 - a command for people
                FILE.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
