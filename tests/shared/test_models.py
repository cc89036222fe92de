"""Accuracy that must not be lost again: real models, default settings, an evaluator that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptq.inspection import inspect_model
from ptq.target import host_target
from tests.shared.results import RUNS, SLACK_DB, measure, results
from tests.shared.workloads import SAMPLES

pytestmark = [
    pytest.mark.shared,
    # The evaluator, which is not ours, leaves files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


EVERY_TIME = {("W8A8", "resnet20"), ("W8A8 rtn", "mobilenet_vww"), ("W4A8 gptq", "mobilenet_vww")}
"""Networks of one kind each; the others are measured every night."""

PAIRS = [
    pytest.param(run, name, marks=[] if (run, name) in EVERY_TIME else [pytest.mark.nightly])
    for run in RUNS
    for name in SAMPLES
]


@pytest.mark.parametrize(("run", "name"), PAIRS)
def test_what_was_reached_is_reached_again(shared: Path, tmp_path: Path, run: str, name: str) -> None:
    target = host_target().name
    known = results()[run].get(name, {}).get(target)
    if known is None:
        pytest.skip(f"tests/shared/results.json has no {run} {name} for {target}")
    result, figures = measure(shared, name, RUNS[run], tmp_path)
    assert figures["sqnr_db"] >= known["sqnr_db"] - SLACK_DB, (figures, known)
    assert figures["bytes"] <= known["bytes"] * 1.005, (figures, known)
    kind = "int4" if run.startswith("W4") else "int8"
    estimate = inspect_model(shared / f"models/{name}.onnx")["estimate"]["file_bytes"][kind]
    leaves = any("carry nothing" in note for note in result.report.notes)  # which only calibration data tell
    assert estimate > figures["bytes"] if leaves else estimate == pytest.approx(figures["bytes"], rel=0.02)
    assert not result.report.proof.kernels.fallbacks
