"""Convolutions by themselves, of samples that differ in level: what one grid leaves of the soft ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.api import calibrate
from ptq.calibration.statistics import LevelOf
from ptq.recipe import Weights
from ptq.weights import Rtn
from tests.builders import model_from_text, random

RECIPE = Recipe("cpu-x86", weights=Weights(Rtn()), accept_poor=True)
WEIGHTS = {
    "w": random((16, 1, 8), 1), "v": random((16, 16, 3), 2, 0.3), "g": np.ones(16, np.float32),
    "p": random((16, 5), 3), "zero": np.zeros(16, np.float32),
}  # fmt: skip
BODIES = {
    "lone": "a = Conv (x, w)  r = Relu (a)  t = Transpose <perm = [0, 2, 1]> (r)",
    "in a chain": "a = Conv (x, w)  r = Relu (a)  c = Conv (r, v)  t = Transpose <perm = [0, 2, 1]> (c)",
}


def net(body: str) -> ir.Model:
    end = "n = LayerNormalization (t, g, zero)  y = MatMul (n, p)"
    return model_from_text(f"net (float[N, 1, 64] x) => (float[N, M, 5] y) {{ {BODIES[body]}  {end} }}", WEIGHTS)


def sounds(decades: float) -> list[dict[str, Any]]:
    """Noise, each the same but softer or louder."""
    rng = np.random.default_rng(0)
    factors = 10 ** rng.uniform(-decades, 0, (24, 1, 1, 1))
    return [{"x": (rng.standard_normal((1, 1, 64)) * factor).astype(np.float32)} for factor in factors]


@pytest.mark.parametrize(
    ("body", "decades", "left"), [("lone", 2.5, True), ("lone", 0.2, False), ("in a chain", 2.5, False)]
)
def test_a_lone_convolution_of_loud_and_soft_samples_stays_float(body: str, decades: float, left: bool) -> None:
    report = quantize(net(body), sounds(decades), RECIPE).report
    floats = [name for name, reason in report.left_float.items() if "differ much in level" in reason]
    assert floats == (["a"] if left else [])
    if left:
        assert "a sample's input keeps only" in report.left_float["a"]
        assert report.proof.comparison.sqnr_db > 30


def test_how_much_a_sample_must_keep_is_the_users() -> None:
    lenient = Recipe("cpu-x86", weights=Weights(Rtn()), min_input_sqnr_db=0.0, accept_poor=True)
    result = quantize(net("lone"), sounds(2.5), lenient)
    assert result.report.left_float == {}
    assert (
        result.report.proof.comparison.sqnr_db
        < quantize(net("lone"), sounds(2.5), RECIPE).report.proof.comparison.sqnr_db
    )


def test_levels_are_kept_in_records(tmp_path: Path) -> None:
    record = calibrate(net("lone"), sounds(2.5), RECIPE)
    record.save(tmp_path / "all.calib")
    result = quantize(net("lone"), sounds(2.5), RECIPE, calibration=tmp_path / "all.calib")
    again = quantize(net("lone"), sounds(2.5), RECIPE)
    assert result.report.left_float == again.report.left_float
    assert {"x", "a"} <= record.latest.statistics.levels.keys()


def test_levels_are_means_over_samples_that_are_not_silent() -> None:
    gatherer = LevelOf().gatherer()
    for factor in (1.0, 0.1, 0.0, 0.001):
        gatherer.add(LevelOf().of(np.full((2, 3), factor, np.float32), 0))
    gatherer.add(LevelOf().of(np.zeros((0, 3), np.float32), 0))
    assert gatherer.value().count == 3
    assert float(gatherer.value().mean[0]) == pytest.approx(-80 / 3, abs=1e-4)
