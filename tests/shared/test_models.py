"""Accuracy that must not be lost again: real models, default settings, an evaluator that is not ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import ptq
from ptq.inspection import inspect_model
from ptq.recipe import Weights
from ptq.weights import Gptq
from tests.shared.workloads import SAMPLES, evaluator, limit

pytestmark = [
    pytest.mark.shared,
    # The evaluator, which is not ours, leaves files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

FLOORS = {"resnet20": 29.5, "squeezenet": 27.5, "mobilenet_vww": 31.0, "repvgg_cifar": 28.5, "minilm": 20.0}
"""SQNR in dB against float; goals of W8A8 with default flags."""


def nightly(names: Iterable[str], *long: str) -> list[Any]:
    """Names as parameters; the long ones only every night: networks of one kind each stay in every run."""
    return [pytest.param(name, marks=[pytest.mark.nightly] * (name in long)) for name in names]


def estimated_bytes(shared: Path, name: str, kind: str) -> int:
    """What `ptq inspect` says before anything is solved."""
    return int(inspect_model(shared / f"models/{name}.onnx")["estimate"]["file_bytes"][kind])


FLOORS_W4A8 = {"resnet20": 19.5, "squeezenet": 15.0, "mobilenet_vww": 15.0}


@pytest.mark.parametrize("name", nightly(FLOORS_W4A8, "resnet20", "squeezenet"))
def test_four_bit_weights_reach_the_floor_at_half_the_bytes(shared: Path, tmp_path: Path, name: str) -> None:
    workloads = evaluator(shared)
    out = tmp_path / "q.onnx"
    recipe = ptq.Recipe(weights=Weights(Gptq(), bits=4))
    result = ptq.quantize(shared / f"models/{name}.onnx", workloads.calib(name, SAMPLES[name]), recipe)
    result.save(out)
    figures = workloads.evaluate(name, out, limit=limit(name))
    assert figures["sqnr_db"] >= FLOORS_W4A8[name], figures
    assert figures["bytes"] < (shared / f"models/{name}.onnx").stat().st_size / 5
    assert estimated_bytes(shared, name, "int4") == pytest.approx(figures["bytes"], rel=0.02)
    assert not result.report.proof.kernels.fallbacks


@pytest.mark.parametrize("name", nightly(FLOORS, "repvgg_cifar", "squeezenet"))
def test_default_flags_reach_the_floor(shared: Path, tmp_path: Path, name: str) -> None:
    workloads = evaluator(shared)
    out = tmp_path / "q.onnx"
    result = ptq.quantize(shared / f"models/{name}.onnx", workloads.calib(name, SAMPLES[name]))
    result.save(out)
    figures = workloads.evaluate(name, out, limit=limit(name))
    assert figures["sqnr_db"] >= FLOORS[name], figures
    assert figures["bytes"] < (shared / f"models/{name}.onnx").stat().st_size
    assert estimated_bytes(shared, name, "int8") == pytest.approx(figures["bytes"], rel=0.02)
    assert not result.report.proof.kernels.fallbacks
