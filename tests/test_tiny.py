"""The one-minute tour: everything a user does, on models of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner

import ptq
from ptq.cli import main
from ptq.demo.data import MODEL, Digits, load
from tests.builders import attention, conv_net, feeds


def test_quantize_save_and_run(tmp_path: Path) -> None:
    result = ptq.quantize(conv_net(), feeds(24, 3, 16, 16))
    result.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    assert result.report.verdict.passed
    assert result.report.proof.comparison.sqnr_db > 30
    kernels = result.report.proof.kernels
    assert kernels.num_linear == 4
    assert not kernels.fallbacks
    assert set(kernels.integer) >= {"QLinearConv", "QLinearAdd", "QLinearConcat", "QGemm"}
    (output,) = result.session().run(None, feeds(1, 3, 16, 16)[0])
    assert output.shape == (1, 5)
    card = json.loads((tmp_path / "q.onnx.card.json").read_text())
    assert len(card["layers"]) == 4


def test_attention_runs_on_integers_without_float_fusion() -> None:
    result = ptq.quantize(attention(), feeds(24, 7, 16))
    kernels = result.report.proof.kernels
    assert not kernels.fallbacks
    assert kernels.num_linear == 8
    assert result.report.proof.comparison.sqnr_db > 25


def test_command_line_on_the_demo_model(tmp_path: Path) -> None:
    _, calibration, evaluation = load()
    Digits(calibration.images[:64], calibration.labels[:64]).save(tmp_path / "c.npz")
    Digits(evaluation.images[:100], evaluation.labels[:100]).save(tmp_path / "e.npz")
    out = tmp_path / "q.onnx"
    runner = CliRunner()
    done = runner.invoke(main, ["quantize", str(MODEL), "--data", str(tmp_path / "c.npz"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "no goal was set" in done.output
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c.npz", "e.npz", "q.onnx", "q.onnx.bench.json", "q.onnx.card.json", "q.onnx.card.md",
    ]  # fmt: skip
    goals = ["--min-agreement", "0.98", "--max-drop", "0.02"]
    done = runner.invoke(main, ["validate", str(MODEL), str(out), "--data", str(tmp_path / "e.npz"), *goals])
    assert done.exit_code == 0, done.output
    assert "top1" in done.output
    assert "goals met, all 2" in done.output
    assert runner.invoke(main, ["methods"]).exit_code == 0
    done = runner.invoke(main, ["inspect", str(MODEL)])
    assert "7 layers" in done.output


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    data = np.concatenate([feed["x"] for feed in feeds(20, 3, 16, 16)])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ptq.quantize(conv_net(), {"x": data}).save(tmp_path / name / "q.onnx")
    for suffix in ("", ".card.json", ".card.md"):
        assert (tmp_path / f"a/q.onnx{suffix}").read_bytes() == (tmp_path / f"b/q.onnx{suffix}").read_bytes()
