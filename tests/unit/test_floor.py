"""The default floor: what is below it is repaired, or said and withheld; nobody calls a broken model a success."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from click.testing import Result as Ended

from ptq import Goals, Recipe, quantize, validate
from ptq.allocation.bit_plan import BitPlan
from ptq.analysis.floor import FLOOR_DB, standing_of
from ptq.analysis.metrics import OutputComparison, OutputMetrics
from ptq.cli import main
from ptq.core.errors import RecipeError
from ptq.recipe import Weights
from ptq.tuning import goals
from ptq.tuning.repair import MOST_REPAIRS
from ptq.weights import Gptq, Rtn
from tests.builders import feeds, model_from_text, random


def net() -> ir.Model:
    """Three layers that two bits ruin."""
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        b = Conv <pads = [1, 1, 1, 1]> (a, v)
        y = Conv <pads = [1, 1, 1, 1]> (b, w)
    }"""
    weights = {"u": random((32, 3, 3, 3), 1), "v": random((32, 32, 3, 3), 2), "w": random((6, 32, 3, 3), 3)}
    return model_from_text(text, weights)


TWO_BITS = Recipe(weights=Weights(Rtn(), bits=2), target="portable")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ir.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(32, 3, 8, 8)]))
    return tmp_path


def run(folder: Path, *more: Any) -> Ended:
    given = ["quantize", folder / "m.onnx", "--data", folder / "d.npz", "-o", folder / "q.onnx"]
    asked = ["--weights", "rtn", "--bits", "2", "--target", "portable"]
    return CliRunner().invoke(main, [str(each) for each in (*given, *asked, *more)])


@pytest.fixture
def beyond_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals.Search, "_search", lambda _self: None)


ROW = OutputMetrics("y", 20.0, 0.99, None, 1.0)


@pytest.mark.parametrize(
    ("row", "holds", "by"),
    [
        (ROW, True, "SQNR 20.00 dB"),
        (replace(ROW, sqnr_db=FLOOR_DB - 0.1), False, "SQNR 14.90 dB"),
        (replace(ROW, sqnr_db=12.0, agreement=0.95), True, "agreement 95.0 %"),
        (replace(ROW, sqnr_db=12.0, agreement=0.85), False, "agreement 85.0 %"),
        (replace(ROW, sqnr_db=12.0, agreement=1.0, varied=False), False, "SQNR 12.00 dB"),  # it always says the same
        (replace(ROW, sqnr_db=1.0, agreement=0.95), False, "SQNR 1.00 dB"),  # equal by chance
        (replace(ROW, agreement=0.8), True, "SQNR 20.00 dB"),  # an embedding: its largest element decides nothing
        (replace(ROW, sqnr_db=-5.0, agreement=0.95, is_float=False), True, "agreement 95.0 %"),  # numbers of classes
    ],
)
def test_an_output_stands_by_its_decisions_or_by_its_error(row: OutputMetrics, holds: bool, by: str) -> None:
    standing = standing_of(row, 64)
    assert (standing.holds, standing.text.startswith(by)) == (holds, True)
    assert "64 samples" in standing.text


@pytest.mark.parametrize(
    ("reference", "varied"),
    [(np.eye(3, dtype=np.float32), True), (np.ones((3, 3), np.float32), False), (np.array([[4, 4], [4, 4]]), False)],
)
def test_decisions_that_never_change_are_noticed(reference: np.ndarray, varied: bool) -> None:
    comparison = OutputComparison("y")
    comparison.update(reference, reference)
    assert comparison.value().varied is varied


def test_text_is_a_decision() -> None:
    comparison = OutputComparison("y")
    comparison.update(np.array(["a", "b", "c", "d"], object), np.array(["a", "b", "c", "x"], object))
    row = comparison.value()
    assert (row.agreement, row.is_float) == (0.75, False)


def test_a_ruined_model_is_repaired_and_the_recipe_repeats_it() -> None:
    poor = quantize(net(), feeds(32, 3, 8, 8), replace(TWO_BITS, accept_poor=True))
    assert poor.report.verdict.word == "poor"
    assert poor.report.verdict.passed
    report = quantize(net(), feeds(32, 3, 8, 8), TWO_BITS).report
    assert report.verdict.word == "holds"
    assert report.proof.comparison.sqnr_db > FLOOR_DB
    assert report.verdict.findings[0].level == "repaired"
    assert 1 < len(report.tries) <= MOST_REPAIRS + 1


def test_what_was_done_is_told_and_saved(folder: Path) -> None:
    done = run(folder, "--save-recipe", folder / "r.toml")
    assert done.exit_code == 0, done.output
    assert "repaired: as asked, " in done.output
    assert "weights by gptq" in done.output
    again = ["quantize", folder / "m.onnx", "--data", folder / "d.npz", "-o", folder / "again.onnx"]
    assert CliRunner().invoke(main, [*map(str, again), "--recipe", str(folder / "r.toml")]).exit_code == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "q.onnx").read_bytes()


@pytest.mark.usefixtures("beyond_repair")
def test_beyond_repair_the_model_lies_beside_its_place(folder: Path) -> None:
    (folder / "q.onnx").write_bytes(b"an older model")
    done = run(folder)
    assert done.exit_code == 1
    assert "verdict: poor; no goal was set; " in done.output
    assert not (folder / "q.onnx").exists()
    looked = ["diff", folder / "m.onnx", folder / "q.onnx.rejected.onnx", "--data", folder / "d.npz", "--json"]
    found = CliRunner().invoke(main, [str(each) for each in looked])
    assert json.loads(found.stdout)["layers"]
    card = json.loads((folder / "q.onnx.card.json").read_text())
    assert (card["verdict"]["word"], card["verdict"]["passed"]) == ("poor", False)
    assert run(folder, "--accept-poor").exit_code == 0
    assert (folder / "q.onnx").exists()
    assert not (folder / "q.onnx.rejected.onnx").exists()


@pytest.mark.usefixtures("beyond_repair")
def test_even_quiet_it_says_that_the_model_is_poor(folder: Path) -> None:
    done = run(folder, "-q")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "verdict: poor" in done.stderr


@pytest.mark.usefixtures("beyond_repair")
def test_what_would_help_was_measured(folder: Path) -> None:
    done = run(folder)
    (line,) = [line for line in done.output.splitlines() if line.startswith("warning: measured on 4 samples")]
    assert "--exclude" in line
    names = line.split("--exclude ")[1:]
    kinds = {node.outputs[0].name: node.op_type for node in net().graph}
    assert all(kinds[name.strip()] == "Conv" for name in names)


def test_a_goal_of_the_users_own_stands_above_the_floor() -> None:
    report = quantize(net(), feeds(32, 3, 8, 8), replace(TWO_BITS, goals=Goals(min_sqnr_db=-50.0))).report
    assert report.verdict.word == "goals met"
    assert report.verdict.findings[0].level == "warning"
    assert "the floor is" in report.verdict.findings[0].text


def test_random_data_is_not_judged() -> None:
    verdict = quantize(net(), None, TWO_BITS).report.verdict
    assert (verdict.word, verdict.passed) == ("not judged", True)


def test_data_that_flows_by_once_is_judged_but_not_tried_again() -> None:
    report = quantize(net(), iter(feeds(32, 3, 8, 8)), TWO_BITS).report
    assert (report.verdict.word, report.tries) == ("poor", ())


@pytest.mark.parametrize(
    "asked",
    [
        Recipe(weights=Weights(Gptq(), bits=2, extra_macs=0.05), target="portable"),
        Recipe(weights=Weights(Rtn(), bits=2), bit_plan=BitPlan({"a": 2, "b": 2, "y": 2}), target="portable"),
    ],
    ids=["extra points", "bit plan"],
)
def test_whatever_else_was_asked_for_does_not_end_a_repair(asked: Recipe) -> None:
    poor = quantize(net(), feeds(32, 3, 8, 8), replace(asked, accept_poor=True)).report
    report = quantize(net(), feeds(32, 3, 8, 8), asked).report
    assert poor.verdict.word == "poor" or not report.tries
    assert report.verdict.word == "holds"


def test_a_try_that_cannot_be_run_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    run, tried = goals.run, list[Recipe]()

    def refusing(job: Any, progress: Any) -> Any:
        tried.append(job.recipe)
        if len(tried) == 1:
            raise RecipeError("no such kernel")
        return run(job, progress)

    monkeypatch.setattr(goals, "run", refusing)
    assert quantize(net(), feeds(32, 3, 8, 8), TWO_BITS).report.verdict.word == "holds"
    assert len(tried) > 1


def test_validate_says_it_too() -> None:
    poor = quantize(net(), feeds(32, 3, 8, 8), replace(TWO_BITS, accept_poor=True))
    assert poor.delivery.data is not None
    found = validate(net(), poor.delivery.data, feeds(8, 3, 8, 8))
    assert (found.verdict.word, found.verdict.passed) == ("poor", False)
    assert validate(net(), poor.delivery.data, feeds(8, 3, 8, 8), accept_poor=True).verdict.passed
