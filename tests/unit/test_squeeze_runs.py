"""Channels that carry nothing, through the front door: modes, shards, workspaces, and what `diff` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, api, calibrate, merge, quantize
from ptq.calibration import shards as shards_module
from ptq.calibration.observers import Dynamic
from ptq.calibration.record import RANGES, SILENT, CalibrationRecord
from ptq.calibration.shards import Shard, StageShards
from ptq.core.errors import RecipeError
from ptq.files import checkpoints
from ptq.passes.channels.removed import count_removed
from ptq.recipe import Weights
from ptq.weights import Rtn
from tests.builders import feeds, model_from_text, random
from tests.squeezing import require_same

WIDE, LEFT = 32, 16
DATA = feeds(40, 3, 8, 8)
SHARDS = 3
FAST = Weights(method=Rtn())


def wide_net(seed: int = 0) -> ir.Model:
    """Three convolutions: of the channels of two, half carry nothing."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {
        "w": random((WIDE, 3, 3, 3), seed), "b": random((WIDE,), seed + 1) + np.float32(0.3),
        "u": random((WIDE, WIDE, 3, 3), seed + 2, 0.06), "c": random((WIDE,), seed + 3) + np.float32(0.3),
        "v": random((LEFT, WIDE, 1, 1), seed + 4, 0.2), "d": random((LEFT,), seed + 5) + np.float32(2.5),
        "o": random((10, LEFT), seed + 6), "e": random((10,), seed + 7),
    }  # fmt: skip
    for weight, bias in ((weights["w"], weights["b"]), (weights["u"], weights["c"])):
        places = rng.permutation(WIDE)
        bias[places[:8]] = -12
        for place, leader, factor in zip(places[8:16], places[16:24], [1, 0.5] * 4, strict=True):
            weight[place], bias[place] = weight[leader] * factor, bias[leader] * factor
    text = """net (float[N, 3, 8, 8] x) => (float[N, 10] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (a)  m = Conv (r, u, c)  s = Relu (m)  t = Conv (s, v, d)
        q = Relu (t)  p = GlobalAveragePool (q)  f = Flatten (p)  y = Gemm <transB = 1> (f, o, e) }"""
    return model_from_text(text, weights)


RECIPES = {
    "static": Recipe(),
    "not evened out": Recipe(weights=FAST, equalize=False),
    "dynamic": Recipe(activations=Dynamic()),
    "weights": Recipe(weights=FAST, weight_only=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_channels_leave_in_every_mode_and_the_bytes_are_the_same_again(name: str) -> None:
    first, second = (quantize(wide_net(), DATA, RECIPES[name]) for _ in range(2))
    assert first.delivery.data == second.delivery.data
    assert count_removed(first.delivery.model) == 2 * LEFT
    assert any("32 channels carry nothing" in note for note in first.report.notes)
    assert first.report.proof.comparison.sqnr_db > 40


@pytest.mark.parametrize("seed", range(3))
def test_the_float_network_is_found_inside(seed: int) -> None:
    quantized = quantize(wide_net(seed), DATA, RECIPES["not evened out"]).delivery.model
    found = api.diff(wide_net(seed), quantized, DATA[:8])
    assert found.float_sqnr_db > 60
    assert {layer.name for layer in found.layers} >= {"a", "m", "t", "y"}


def test_a_smaller_float_model_is_the_same_model() -> None:
    result = api.squeeze(wide_net(), DATA)
    assert result.delivery.model.graph.initializers["u"].shape == (LEFT, LEFT, 3, 3)
    require_same(wide_net(), result.delivery.model, feeds(3, 3, 8, 8, seed=77))


@pytest.mark.parametrize(
    ("which", "removed"),
    [("never", 0), ("proved", 0), ("auto", 32), ("0.01", 32), ("9%", 32), (" 0.1 ", 32), ("1", 32)],
)
def test_which_channels_leave(which: str, removed: int) -> None:
    result = quantize(wide_net(), DATA, Recipe(squeeze=which, weights=FAST, equalize=False))
    assert count_removed(result.delivery.model) == removed
    assert result.report.proof.comparison.sqnr_db > 40


@pytest.mark.parametrize("which", ["bogus", "", "0", "0%", "-1", "150%", "nan", "inf", "1e-400", "%", "auto%"])
def test_other_words_are_refused(which: str) -> None:
    with pytest.raises(
        RecipeError, match=r"squeeze is .*; expected never, proved, auto, fewest or a share such as 0\.1"
    ):
        quantize(wide_net(), DATA, Recipe(squeeze=which))


def test_random_data_prove_nothing() -> None:
    assert not count_removed(quantize(wide_net(), None, Recipe(weights=FAST, accept_poor=True)).delivery.model)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "PART", 4)
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1.0)


def in_rounds(folder: Path, recipe: Recipe) -> tuple[Path, int]:
    """Shards, merged, as often as there are rounds."""
    whole, known, rounds = folder / "whole.calib", None, 0
    while known is None or CalibrationRecord.load(known).is_first_round:
        parts = [folder / f"{index}.calib" for index in range(SHARDS)]
        for index, part in enumerate(parts):
            calibrate(wide_net(), DATA, recipe, shard=Shard(index, SHARDS), calibration=known).save(part)
        merge(parts[::-1]).save(whole)
        known, rounds = whole, rounds + 1
    return whole, rounds


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", ["static", "weights"])
def test_shards_give_the_bytes_of_one_run(tmp_path: Path, name: str) -> None:
    recipe = RECIPES[name]
    whole, rounds = in_rounds(tmp_path, recipe)
    assert rounds == 2
    calibrate(wide_net(), DATA, recipe).save(tmp_path / "one.calib")
    assert (tmp_path / "one.calib").read_bytes() == whole.read_bytes()
    plain = quantize(wide_net(), DATA, recipe)
    assert quantize(wide_net(), DATA, recipe, calibration=whole).delivery.data == plain.delivery.data


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("stage", [SILENT, RANGES])
def test_an_interrupted_run_goes_on_from_its_workspace(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, pending, passes = RECIPES["not evened out"], StageShards.pending, []

    def broken(shards: StageShards, given: Any) -> Any:
        passes.append(shards)
        for number, feed in pending(shards, given):
            if number == 20 and len(passes) == {SILENT: 2, RANGES: 4}[stage]:  # the first look, the pass, held out
                raise KeyboardInterrupt
            yield number, feed

    monkeypatch.setattr(StageShards, "pending", broken)
    with pytest.raises(KeyboardInterrupt):
        quantize(wide_net(), DATA, recipe, workspace=tmp_path / "work")
    monkeypatch.setattr(StageShards, "pending", pending)
    resumed = quantize(wide_net(), DATA, recipe, workspace=tmp_path / "work")
    assert resumed.delivery.data == quantize(wide_net(), DATA, recipe).delivery.data
