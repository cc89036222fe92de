"""Calibrations that are kept, shared out over machines, interrupted, or somebody else's."""

from __future__ import annotations

import random as shuffling
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Recipe, calibrate, merge, quantize
from ptq.calibration import collect as collecting
from ptq.calibration import shards as ledgers
from ptq.calibration.record import CalibrationRecord
from ptq.calibration.shards import Shard
from ptq.cli import main
from ptq.core.archive import freeze, thaw
from ptq.core.errors import CalibrationError, InputError
from ptq.files import checkpoints
from ptq.recipe import Weights
from ptq.solving.layer_solver import LayerSolver
from ptq.weights import Gptq
from tests.builders import feeds, model_from_text, random

QUIET = Recipe(squeeze="never")  # channels that carry nothing are looked for in the first samples, in every run
RECIPES = {"int8": QUIET, "gptq": replace(QUIET, weights=Weights(Gptq(), bits=4))}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PART", 4)
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1.0)


def net(seed: int = 1) -> ir.Model:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
        a = Conv (x, w, b)
        r = Relu (a)
        g = GlobalAveragePool (r)
        f = Flatten (g)
        y = Gemm (f, v)
    }"""
    weights = {"w": random((6, 3, 3, 3), seed), "b": random((6,), 2), "v": random((6, 4), 3)}
    return model_from_text(text, weights)


def samples() -> list[dict[str, Any]]:
    return feeds(96, 3, 8, 8)


def bytes_of(model: ir.Model, data: Any, recipe: Recipe, **given: Any) -> tuple[bytes | None, str]:
    result = quantize(model, data, recipe, **given)
    return result.delivery.data, result.report.card_json()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_in_any_order_make_the_model_of_one_run(recipe: Recipe, count: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.calib" for index in range(count)]
    for index, path in enumerate(paths):
        calibrate(net(), samples(), recipe, shard=Shard(index, count)).save(path)
    shuffling.Random(count).shuffle(paths)
    merge(paths).save(tmp_path / "all.calib")
    calibrate(net(), samples(), recipe).save(tmp_path / "whole.calib")
    assert (tmp_path / "all.calib").read_bytes() == (tmp_path / "whole.calib").read_bytes()
    with pytest.MonkeyPatch.context() as patch:  # nothing may be run again
        patch.setattr(collecting, "contribution_of", None)
        found = bytes_of(net(), samples(), recipe, calibration=tmp_path / "all.calib")
    assert found == bytes_of(net(), samples(), recipe)


def broken(at: int) -> Iterator[dict[str, Any]]:
    for index, feed in enumerate(samples()):
        if index == at:
            raise KeyboardInterrupt
        yield feed


@pytest.mark.parametrize("at", [3, 70, 90])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_an_interrupted_calibration_goes_on_and_gives_the_same_bytes(
    recipe: Recipe, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        quantize(net(), broken(at), recipe, workspace=work)
    assert work.exists() == (at > 64)  # not before the set is calibrated on
    seen: list[int] = []
    contribution_of = collecting.contribution_of
    monkeypatch.setattr(
        collecting,
        "contribution_of",
        lambda wanted, arrays, number: (seen.append(number), contribution_of(wanted, arrays, number))[1],
    )
    found = bytes_of(net(), samples(), recipe, workspace=work)
    if at > 64:
        assert len(seen) < 80
        assert seen[0] >= 4
    monkeypatch.undo()
    monkeypatch.setattr(ledgers, "PART", 4)
    assert found == bytes_of(net(), samples(), recipe)


def test_interrupted_solving_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, solve, solved = RECIPES["gptq"], LayerSolver.solve, list[str]()

    def fragile(job: LayerSolver, moments: Any) -> Any:
        if len(solved) == 1:
            raise KeyboardInterrupt
        solved.append(job.layer.name)
        return solve(job, moments)

    monkeypatch.setattr(LayerSolver, "solve", fragile)
    with pytest.raises(KeyboardInterrupt):
        quantize(net(), samples(), recipe, workspace=tmp_path / "work")
    first, solved = solved[0], ["none"]
    solved.clear()
    monkeypatch.setattr(
        LayerSolver, "solve", lambda job, moments: (solved.append(job.layer.name), solve(job, moments))[1]
    )
    found = bytes_of(net(), samples(), recipe, workspace=tmp_path / "work")
    assert solved
    assert first not in solved
    assert found == bytes_of(net(), samples(), recipe)
    solved.clear()  # another recipe meets nothing of this
    quantize(net(), samples(), Recipe(weights=Weights(Gptq(), bits=3)), workspace=tmp_path / "work")
    assert first in solved


def test_what_belongs_to_something_else_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.calib"
    calibrate(net(), samples()).save(path)
    with pytest.raises(InputError, match=r"s\.calib: made for another model or recipe"):
        quantize(net(2), samples(), calibration=path)
    with pytest.raises(InputError, match=r"s\.calib: made for another"):
        quantize(net(), samples(), RECIPES["gptq"], calibration=path)
    other = samples()
    other[20]["x"] = other[20]["x"] + 1
    with pytest.raises(InputError, match=r"s\.calib: made from another calibration set \(part 4 holds other samples\)"):
        quantize(net(), other, calibration=path)
    with pytest.raises(InputError, match=r"s\.calib: made from another calibration set"):
        quantize(net(), samples()[:20], calibration=path)
    with pytest.raises(InputError, match=r"s\.calib: part 21 of the calibration set is missing"):
        quantize(net(), [*samples(), *samples()], calibration=path)
    calibrate(net(), samples(), shard=Shard(0, 2)).save(path)
    with pytest.raises(InputError, match=r"s\.calib: part 1 of the calibration set is missing; merge every shard"):
        quantize(net(), samples(), calibration=path)
    with pytest.raises(InputError, match=r"s\.calib: part 0 .* second time"):
        merge([path, path])
    with pytest.raises(CalibrationError, match="shard 30 of 30 is empty"):
        calibrate(net(), samples(), shard=Shard(29, 30))


def test_an_older_run_on_other_data_is_no_obstacle(tmp_path: Path) -> None:
    other = [{"x": feed["x"] * 2} for feed in samples()]
    with pytest.raises(KeyboardInterrupt):
        quantize(net(), broken(80), workspace=tmp_path)
    with pytest.raises(InputError, match="run again"):
        quantize(net(), other, workspace=tmp_path)
    assert bytes_of(net(), other, Recipe(), workspace=tmp_path) == bytes_of(net(), other, Recipe())


def test_damaged_records_are_one_line(tmp_path: Path) -> None:
    whole = calibrate(net(), samples())
    data, generator = freeze(whole), np.random.default_rng(0)
    assert freeze(CalibrationRecord.of(data, "it")) == data
    for _ in range(300):
        damaged = bytearray(data[: int(generator.integers(1, len(data)))] if generator.random() < 0.3 else data)
        for place in generator.integers(0, min(len(damaged), 3000), 3):
            damaged[place] = int(generator.integers(0, 256))
        with suppress(InputError):  # and nothing else
            CalibrationRecord.of(bytes(damaged), "it").merge(whole)


def test_values_come_back_as_they_were() -> None:
    value = {"a": (1, None, "x", True), "b": np.arange(6, dtype=np.int8).reshape(2, 3), "c": np.float32(2.5)}
    found = thaw(freeze(value))
    assert found["a"] == value["a"]
    np.testing.assert_array_equal(found["b"], value["b"])
    assert found["c"].shape == ()
    assert found["c"].dtype == np.float32
    with pytest.raises(TypeError, match="set cannot be kept"):
        freeze({1, 2})
    with pytest.raises(InputError, match="damaged"):
        thaw(freeze(Shard()), ())


def test_the_command_line(tmp_path: Path) -> None:
    ir.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in samples()]))
    model, data = str(tmp_path / "m.onnx"), str(tmp_path / "d.npz")

    def run(*given: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*given])
        return result.exit_code, result.output

    for index in (1, 2):
        code, text = run(
            "calibrate", model, "--data", data, "--shard", f"{index}/2", "-o", str(tmp_path / f"{index}.calib")
        )
        assert code == 0, text
    parts = [str(tmp_path / "2.calib"), str(tmp_path / "1.calib")]
    assert run("merge", *parts, "-o", str(tmp_path / "all.calib"))[0] == 0
    given = ["quantize", model, "--data", data, "-o"]
    assert run(*given, str(tmp_path / "a.onnx"), "--calibration", str(tmp_path / "all.calib"))[0] == 0
    assert run(*given, str(tmp_path / "b.onnx"))[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    for wrong in ("0/2", "3/2", "x", "1/"):
        code, text = run("calibrate", model, "--data", data, "--shard", wrong, "-o", str(tmp_path / "c.calib"))
        assert code == 2
        assert "expected I/N" in text
    assert run("calibrate", model, "--data", data, "-o", model)[0] == 2
    assert run("merge", str(tmp_path / "none.calib"), "-o", str(tmp_path / "c.calib"))[0] == 2
    left = {path.name for path in tmp_path.iterdir() if "calib" in path.name or path.name.startswith(".")}
    assert left == {"1.calib", "2.calib", "all.calib"}
