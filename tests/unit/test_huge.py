"""Models too large for memory, here small ones that are treated as such: solved layer by layer, and again from where
an interrupted run stopped."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import ptq
from ptq import Recipe, pipeline
from ptq.allocation import BitPlan
from ptq.cli import main
from ptq.files.checkpoints import SUFFIX
from ptq.recipe import Goals, GranularityName, LayerRule, Weights
from ptq.runtime import open_session
from ptq.weights import Gptq
from tests.builders import model_from_text, random
from tests.unit.test_balancing import sqnr_db


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Products with and without Relu behind them, all weights in a file beside the model."""
    monkeypatch.setattr(pipeline, "needs_streaming", lambda _model: True)
    return put_products(tmp_path / "m.onnx", 200)


def put_products(path: Path, width: int) -> Path:
    steps = [
        f"a{i} = MatMul ({name}, w{i}0)\n r{i} = Relu (a{i})\n b{i} = MatMul (r{i}, w{i}1)\n y{i} = Add (b{i}, {name})"
        for i, name in enumerate(("x", "y0", "y1"))
    ]
    text = "m (float[N, 64] x) => (float[N, 64] y2) {\n" + "\n".join(steps) + "\n}"
    shapes = {f"w{i}{part}": shape for i in range(3) for part, shape in enumerate(((64, width), (width, 64)))}
    weights = {name: random(shape, i, shape[0] ** -0.5) for i, (name, shape) in enumerate(shapes.items())}
    ir.save(model_from_text(text, weights), path, external_data="m.onnx.data", size_threshold_bytes=0)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def samples(count: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 64)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("bits", [8, 4])
def test_every_layer_is_solved_and_compared(model: Path, bits: int, tmp_path: Path) -> None:
    progress: list[str] = []
    recipe = Recipe(weight_only=True, weights=Weights(bits=bits))
    result = ptq.quantize(model, samples(), recipe, progress=progress.append)
    assert next(step for step in progress if step.startswith("layer")) == "layer 1 of 6: a0"
    assert result.report.proof.kernels.integer == {"MatMulNBits": 6}
    assert not result.report.proof.kernels.fallbacks
    result.save(tmp_path / "q.onnx")
    found = [open_session(tmp_path / "q.onnx").run(None, feed)[0] for feed in samples()]
    real = [open_session(model).run(None, feed)[0] for feed in samples()]
    error = np.square(np.subtract(found, real)).sum() / np.square(real).sum()
    assert -10 * np.log10(error) > {8: 36, 4: 15}[bits]
    assert result.report.proof.comparison.sqnr_db == pytest.approx(-10 * np.log10(error), abs=3)


def test_gives_what_the_whole_model_in_memory_gives(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(bits=4, granularity="block-32", bias_correction=False)
    recipe = Recipe(weight_only=True, weights=weights, squeeze="never")  # nothing leaves what is streamed
    streamed = ptq.quantize(model, samples(), recipe)
    monkeypatch.setattr(pipeline, "needs_streaming", lambda _model: False)
    whole = ptq.quantize(model, samples(), recipe)
    for feed in samples():
        np.testing.assert_array_equal(streamed.session().run(None, feed)[0], whole.session().run(None, feed)[0])
    assert sqnr_db(streamed, onnx_model(model), samples()) > 15


def test_products_are_counted_for_every_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "m (float[N, S, 64] x) => (float[N, S, 48] y) { y = MatMul (x, w) }"
    ir.save(model_from_text(text, {"w": random((64, 48), 1)}), tmp_path / "m.onnx")
    recipe = Recipe(weight_only=True, weights=Weights(bits=4, granularity="block-32", bias_correction=False))
    data = [{"x": random((1, 8, 64), index)} for index in range(4)]
    whole = ptq.quantize(tmp_path / "m.onnx", data, recipe).report.layers
    monkeypatch.setattr(pipeline, "needs_streaming", lambda _model: True)
    streamed = ptq.quantize(tmp_path / "m.onnx", data, recipe).report.layers
    assert [row.num_macs for row in streamed] == [row.num_macs for row in whole] == [8 * 64 * 48]
    assert [row.sparsity for row in streamed] == [row.sparsity for row in whole]


@pytest.mark.parametrize("granularity", ["per-channel", "block-32"])
def test_word_lengths_of_single_layers_count(model: Path, granularity: GranularityName) -> None:
    recipe = Recipe(weight_only=True, weights=Weights(bits=4, granularity=granularity))
    ruled = replace(recipe, layers=(LayerRule("a0", bits=8), LayerRule("b2", bits=2)))
    planned = replace(recipe, bit_plan=BitPlan({"a0": 8, "b2": 2}))
    results = [ptq.quantize(model, samples(), each) for each in (ruled, planned)]
    for result in results:
        assert [row.num_bits for row in result.report.layers] == [8, 4, 4, 4, 4, 2]


def onnx_model(path: Path) -> Any:
    from ptq.models.load import load_model

    return load_model(path)


class StoppedError(Exception):
    """The machine went away."""


def test_an_interrupted_run_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptq.streaming import solve as streaming

    recipe, solved = Recipe(weight_only=True, weights=Weights(bits=4)), []
    solve_rows = streaming._solve_rows

    def counted(name: str, *rest: Any) -> Any:
        if len(solved) == 4:
            raise StoppedError
        solved.append(name)
        return solve_rows(name, *rest)

    monkeypatch.setattr(streaming, "_solve_rows", counted)
    with pytest.raises(StoppedError):
        ptq.quantize(model, samples(), recipe, workspace=tmp_path / "work")
    assert solved == ["a0", "b0", "a1", "b1"]
    del solved[:]
    resumed = ptq.quantize(model, samples(), recipe, workspace=tmp_path / "work")
    assert solved == ["a2", "b2"]
    monkeypatch.setattr(streaming, "_solve_rows", solve_rows)
    fresh = ptq.quantize(model, samples(), recipe)
    resumed.save(tmp_path / "a.onnx")
    fresh.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    other = ptq.quantize(
        model, samples(), Recipe(weight_only=True, weights=Weights(bits=8)), workspace=tmp_path / "work"
    )
    assert {row.num_bits for row in other.report.layers} == {8}  # what lies there is not of this recipe


def test_a_solved_layer_cut_short_is_solved_again(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(weight_only=True, weights=Weights(bits=4))
    ptq.quantize(model, samples(), recipe, workspace=tmp_path / "work")
    paths = list((tmp_path / "work").glob(f"*{SUFFIX}"))
    assert len(paths) == 6
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])
    result = ptq.quantize(model, samples(), recipe, workspace=tmp_path / "work")
    assert result.report.proof.comparison.sqnr_db > 15


def test_the_command_line_cleans_up_and_says_what_it_needs(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.concatenate([feed["x"] for feed in samples()]))
    arguments = ["quantize", str(model), "--data", str(tmp_path / "x.npz"), "-o", str(tmp_path / "q.onnx")]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "--weight-only" in refused.output
    assert refused.output.count("\n") == 1
    done = CliRunner().invoke(main, [*arguments, "--weight-only", "--bits", "4"])
    assert done.exit_code == 0, done.output
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"m.onnx", "m.onnx.data", "x.npz", "q.onnx", "q.onnx.data"} | {
        f"q.onnx.{kind}" for kind in ("card.json", "card.md", "bench.json")
    }
    with pytest.raises(ptq.PtqError, match="layer by layer"):
        ptq.quantize(model, samples(), Recipe(weight_only=True, weights=Weights(Gptq())))


@pytest.mark.parametrize(
    ("option", "code", "model_name"),
    [([], 1, "q.onnx.rejected.onnx"), (["--accept-poor"], 0, "q.onnx"), (["--goal", "sqnr >= 16"], 0, "q.onnx")],
)
def test_below_the_floor_and_after_a_search_nothing_but_the_result_is_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], code: int, model_name: str
) -> None:
    put_products(model, 1000)  # so large that codes of two bits do not fit into the graph either
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temp").mkdir()
    np.savez(tmp_path / "x.npz", x=np.concatenate([feed["x"] for feed in samples()]))
    arguments = ["quantize", str(model), "--data", str(tmp_path / "x.npz"), "-o", str(tmp_path / "q.onnx")]
    done = CliRunner().invoke(main, [*arguments, "--weight-only", "--bits", "2", *option])
    assert done.exit_code == code, done.output
    assert ("verdict: poor" in done.output) == ("--goal" not in option)
    assert {path.name for path in tmp_path.rglob("*") if "q.onnx" in path.name} == {
        model_name, f"{model_name}.data", *(f"q.onnx.{kind}" for kind in ("card.json", "card.md", "bench.json"))
    }  # fmt: skip
    assert not list((tmp_path / "temp").iterdir())
    monkeypatch.undo()
    error = ptq.validate(model, tmp_path / model_name, samples(), accept_poor=True).comparison.sqnr_db
    assert (error > 16) == ("--goal" in option)


def test_what_would_not_be_looked_at_is_refused(model: Path) -> None:
    recipe = Recipe(weight_only=True, goals=Goals(max_latency_ratio=0.5))
    with pytest.raises(ptq.PtqError, match="--max-latency-ratio"):
        ptq.quantize(model, samples(), recipe)
    with pytest.raises(ptq.PtqError, match="--eval-data"):
        ptq.quantize(model, samples(), Recipe(weight_only=True), evaluation=samples())


def test_inspection_runs_nothing_and_says_what_it_takes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq import inspection

    monkeypatch.setattr(inspection, "needs_streaming", lambda _model: True)
    monkeypatch.setattr(inspection, "prepare", None)
    facts = inspection.inspect_model(model)
    assert [layer["macs"] for layer in facts["layers"]] == [64 * 200] * 6
    assert facts["layers"][0]["weight_range"] is None
    assert facts["estimate"]["ram_bytes"] > 160 * 2**20
    assert "layer by layer" in facts["preparation"][0]
    for bits, name in ((8, "int8"), (4, "int4")):
        result = ptq.quantize(model, samples(), Recipe(weight_only=True, weights=Weights(bits=bits)))
        assert facts["estimate"]["file_bytes"][name] == pytest.approx(result.delivery.num_bytes, rel=0.1)
