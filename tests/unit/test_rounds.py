"""Shards of a network whose channels are evened out: two rounds, a share of the samples each, the bytes of one run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Recipe, calibrate, merge, quantize
from ptq.calibration import collect as collecting
from ptq.calibration import shards as shards_module
from ptq.calibration.executor import Executor, Ray, Threads
from ptq.calibration.record import CHANNELS, RANGES, CalibrationRecord
from ptq.calibration.shards import Shard, StageShards
from ptq.calibration.statistics import ExtremesOf
from ptq.cli import main
from ptq.core.archive import freeze
from ptq.core.errors import InputError
from ptq.files import checkpoints
from ptq.recipe import Weights
from tests.builders import SWIGLU_WIDTH, attention, feeds, random, swiglu
from tests.unit.test_balancing import outlier_net
from tests.unit.test_engine import Elsewhere

SHARDS = 4
DATA = feeds(96, 7, 16)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "PART", 4)
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1.0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first value of every sample that is run, in order."""
    found: list[str] = []
    contribution_of = collecting.contribution_of

    def counted(wanted: Any, arrays: Any, number: int) -> Any:
        found.append(next(iter(wanted.values()))[0].tag)
        return contribution_of(wanted, arrays, number)

    monkeypatch.setattr(collecting, "contribution_of", counted)
    return found


def in_shards(folder: Path, executor: Executor, data: Any = DATA, recipe: Recipe | None = None) -> Path:
    """Two rounds over four shards."""
    whole, known = folder / "whole.calib", None
    for _ in range(2):
        parts = []
        for index in range(SHARDS):
            parts.append(folder / f"{index}.calib")
            shard = Shard(index, SHARDS)
            calibrate(outlier_net(), data, recipe, shard=shard, engine=executor, calibration=known).save(parts[-1])
        merge(parts[::-1]).save(whole)
        known = whole
    return whole


@pytest.mark.parametrize("executor", [Threads(2), Elsewhere(3)], ids=["threads", "elsewhere"])
def test_each_machine_runs_its_share_and_the_bytes_are_those_of_one_run(
    tmp_path: Path, executor: Executor, runs: list[str]
) -> None:
    recipe = Recipe(squeeze="never")  # channels that carry nothing are looked for in the first samples everywhere
    known = None
    for tag in ("extremes", "histogram"):
        shares = []
        for index in range(SHARDS):
            runs.clear()
            record = calibrate(outlier_net(), DATA, recipe, shard=Shard(index, SHARDS), calibration=known)
            record.save(tmp_path / f"{index}.calib")
            shares.append(Counter(runs))
        assert all(set(share) == {tag} for share in shares)
        assert max(share.total() for share in shares) <= 0.3 * len(DATA)
        merge([tmp_path / f"{index}.calib" for index in range(SHARDS)]).save(tmp_path / "whole.calib")
        known = tmp_path / "whole.calib"
    calibrate(outlier_net(), DATA, recipe, engine=executor).save(tmp_path / "one.calib")
    assert (tmp_path / "one.calib").read_bytes() == (tmp_path / "whole.calib").read_bytes()
    runs.clear()
    found = quantize(outlier_net(), DATA, recipe, calibration=tmp_path / "whole.calib")
    assert not runs
    plain = quantize(outlier_net(), DATA, recipe)
    assert found.delivery.data == plain.delivery.data
    assert found.report.card_json() == plain.report.card_json()


def test_executors_agree(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert in_shards(tmp_path / "a", Threads(1)).read_bytes() == in_shards(tmp_path / "b", Elsewhere(5)).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_records(tmp_path: Path) -> None:
    pytest.importorskip("ray", minversion="2.54")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = in_shards(tmp_path / "a", Ray(num_workers=2), DATA[:40])
    assert found.read_bytes() == in_shards(tmp_path / "b", Threads(1), DATA[:40]).read_bytes()


@pytest.mark.parametrize("at", [70, 90])
@pytest.mark.parametrize("stage", [CHANNELS, RANGES])
def test_an_interrupted_pass_goes_on(
    tmp_path: Path, runs: list[str], stage: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = StageShards.pending

    def broken(shards: StageShards, given: Any) -> Any:
        tag = {CHANNELS: "extremes", RANGES: "histogram"}[stage]
        for number, feed in pending(shards, given):
            if number == at - 20 and runs and runs[-1] == tag:
                raise KeyboardInterrupt
            yield number, feed

    monkeypatch.setattr(StageShards, "pending", broken)
    with pytest.raises(KeyboardInterrupt):
        quantize(outlier_net(), DATA, workspace=tmp_path / "work")
    monkeypatch.setattr(StageShards, "pending", pending)
    runs.clear()
    resumed = quantize(outlier_net(), DATA, workspace=tmp_path / "work")
    again = Counter(runs)
    assert again["extremes" if stage == CHANNELS else "histogram"] < 0.75 * len(DATA)
    assert resumed.delivery.data == quantize(outlier_net(), DATA).delivery.data


def test_rounds_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = tmp_path / "first.calib"
    calibrate(outlier_net(), DATA, shard=Shard(0, 2)).save(first)
    calibrate(outlier_net(), DATA, shard=Shard(1, 2)).save(tmp_path / "second.calib")
    merge([first, tmp_path / "second.calib"]).save(tmp_path / "round.calib")
    with pytest.raises(InputError, match=r"round\.calib: holds channels, but not ranges; .*--calibration"):
        quantize(outlier_net(), DATA, calibration=tmp_path / "round.calib")
    with pytest.raises(InputError, match=r"first\.calib: part 1 of the calibration set is missing; merge every shard"):
        calibrate(outlier_net(), DATA, shard=Shard(0, 2), calibration=first)
    calibrate(outlier_net(), DATA).save(tmp_path / "both.calib")
    with pytest.raises(InputError, match=r"first\.calib: holds channels where the others hold channels, ranges"):
        merge([tmp_path / "both.calib", first])
    with pytest.raises(InputError, match=r"both\.calib: part 0 .* second time"):
        merge([tmp_path / "both.calib", tmp_path / "both.calib"])
    other = calibrate(outlier_net(), [{"x": feed["x"] * 2} for feed in DATA])
    other.save(tmp_path / "other.calib")
    with pytest.raises(InputError, match=r"other\.calib: its channels is that of another run"):
        merge([tmp_path / "both.calib", tmp_path / "other.calib"])


def test_values_can_be_asked_for_by_name_and_come_back_from_a_file(tmp_path: Path) -> None:
    wanted = {"z": (ExtremesOf(),), "fb": (ExtremesOf(), ExtremesOf(1))[:1]}
    whole = collecting.collect(outlier_net(), DATA, wanted)
    parts = [
        collecting.collect(outlier_net(), DATA, wanted, shards=StageShards(Shard(index, 3)), engine=Elsewhere(index))
        for index in range(3)
    ]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert freeze(merged) == freeze(whole)
    CalibrationRecord({"mine": merged}).save(tmp_path / "x.calib")
    found = CalibrationRecord.load(tmp_path / "x.calib").stages["mine"].statistics.halves
    assert found.keys() == wanted.keys()
    np.testing.assert_array_equal(found["z"][0].high, whole.statistics.halves["z"][0].high)


def test_weights_alone_have_rounds_too(tmp_path: Path) -> None:
    """Scales of weights that meet wide channels come from what channels carry, wherever that was seen."""
    recipe = Recipe(weight_only=True, weights=Weights(bits=4, granularity="block-32"))
    data = [{"x": random((1, 5, SWIGLU_WIDTH), seed)} for seed in range(48)]
    known = None
    for _ in range(2):
        for index in range(3):
            shard = Shard(index, 3)
            calibrate(swiglu(20.0), data, recipe, shard=shard, calibration=known).save(tmp_path / f"{index}.calib")
        known = tmp_path / "whole.calib"
        merge([tmp_path / f"{index}.calib" for index in range(3)]).save(known)
    found = quantize(swiglu(20.0), data, recipe, calibration=known)
    assert found.delivery.data == quantize(swiglu(20.0), data, recipe).delivery.data


def test_the_command_line_says_what_comes_next(tmp_path: Path) -> None:
    ir.save(attention(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in DATA]))
    model, data, whole = (str(tmp_path / name) for name in ("m.onnx", "d.npz", "whole.calib"))

    def run(*given: str) -> str:
        result = CliRunner().invoke(main, [*given])
        assert result.exit_code == 0, result.output
        return result.output

    parts = [str(tmp_path / f"{index}.calib") for index in (1, 2)]
    for more in ([], ["--calibration", whole]):
        for index, part in enumerate(parts, 1):
            text = run("calibrate", model, "--data", data, "--shard", f"{index}/2", "-o", part, *more)
            assert ("round 1: merge" in text) == (not more)
        run("merge", *parts, "-o", whole)
    run("quantize", model, "--data", data, "-o", str(tmp_path / "a.onnx"), "--calibration", whole)
    run("quantize", model, "--data", data, "-o", str(tmp_path / "b.onnx"))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
