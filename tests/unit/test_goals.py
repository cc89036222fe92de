"""The smallest model that meets a goal, and what happens where none does."""

from __future__ import annotations

import itertools
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Goals, Recipe, Result, quantize
from ptq.cli import main
from ptq.core.errors import RecipeError
from ptq.recipe import Weights
from ptq.recipe.text import parse_goal
from ptq.recipe.toml import load_recipe
from ptq.tuning import goals
from ptq.weights import Gptq
from tests.builders import feeds, model_from_text, random


def net() -> ir.Model:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 10] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, v)
        d = Relu (c)
        g = GlobalAveragePool (d)
        f = Flatten (g)
        y = Gemm (f, w)
    }"""
    weights = {"u": random((48, 3, 3, 3), 1), "v": random((48, 48, 3, 3), 2), "w": random((48, 10), 3)}
    return model_from_text(text, weights)


def recipe(**fields: Any) -> Recipe:
    return Recipe(weights=Weights(Gptq(), bits=3), search=True, **fields)


@pytest.fixture(scope="module")
def as_given() -> Result:
    return quantize(net(), feeds(32, 3, 8, 8), replace(recipe(), search=False))


def test_a_goal_that_is_met_already_changes_nothing(as_given: Result) -> None:
    result = quantize(net(), feeds(32, 3, 8, 8), recipe(goals=Goals(min_sqnr_db=1.0)))
    assert result.delivery.data == as_given.delivery.data
    assert [each.passed for each in result.report.tries] == [True]


def test_a_goal_is_met_with_fewer_bytes_than_all_at_eight_bits(as_given: Result) -> None:
    aim = as_given.report.proof.comparison.sqnr_db + 4
    result = quantize(net(), feeds(32, 3, 8, 8), recipe(goals=Goals(min_sqnr_db=aim)))
    naive = quantize(net(), feeds(32, 3, 8, 8), Recipe(weights=Weights(Gptq())))
    assert result.report.verdict.passed
    assert result.report.proof.comparison.sqnr_db >= aim
    assert as_given.delivery.num_bytes < result.delivery.num_bytes < naive.delivery.num_bytes
    met = [each.num_bytes for each in result.report.tries if each.passed]
    assert result.delivery.num_bytes == min(met)


def test_where_short_codes_cost_more_than_they_save_all_get_eight_bits() -> None:
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }"
    tiny = model_from_text(text, {"w": random((4, 3, 3, 3), 1)})
    result = quantize(tiny, feeds(32, 3, 8, 8), recipe(goals=Goals(min_sqnr_db=32.0)))
    assert result.report.verdict.passed
    assert result.report.tries[-1].name == "all at 8 bits"
    assert result.delivery.num_bytes == min(each.num_bytes for each in result.report.tries if each.passed)
    assert [row.num_bits for row in result.report.layers] == [8]


def test_the_recipe_makes_the_same_model_in_one_go(as_given: Result, tmp_path: Path) -> None:
    ir.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(32, 3, 8, 8)]))
    aim = as_given.report.proof.comparison.sqnr_db + 4
    given = ["quantize", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz")]
    asked = ["--weights", "gptq", "--bits", "3", "--goal", f"sqnr >= {aim:.2f}"]
    paths = [str(tmp_path / name) for name in ("a.onnx", "r.toml", "b.onnx")]
    first = CliRunner().invoke(main, [*given, *asked, "-o", paths[0], "--save-recipe", paths[1]])
    assert first.exit_code == 0, first.output
    assert "tried" in first.output
    assert load_recipe(tmp_path / "r.toml").search is False
    assert tomllib.loads((tmp_path / "r.toml").read_text())["layers"]
    assert CliRunner().invoke(main, [*given, "--recipe", paths[1], "-o", paths[2]]).exit_code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    cards = [json.loads((tmp_path / f"{name}.onnx.card.json").read_text()) for name in "ab"]
    assert cards[0] | {"quantized_model": 0} == cards[1] | {"quantized_model": 0}
    tries = json.loads((tmp_path / "a.onnx.bench.json").read_text())["tries"]
    assert tries[0]["name"] == "as given"
    assert not tries[0]["passed"]


def test_a_goal_out_of_reach_ends_with_the_best_and_the_reason() -> None:
    result = quantize(net(), feeds(32, 3, 8, 8), recipe(goals=Goals(min_sqnr_db=190.0)))
    assert not result.report.verdict.passed
    assert 1 < len(result.report.tries) <= goals.MOST_RUNS
    best = max(each.sqnr_db for each in result.report.tries)
    assert result.report.proof.comparison.sqnr_db == best
    assert "190" in result.report.verdict.findings[0].text


def test_free_choices_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for later in ("with_more_bits", "by_rounding", "in_float"):
        monkeypatch.setattr(goals.Search, later, lambda _self: None)
    coarse = Recipe(weights=Weights(bits=4, granularity="per-tensor", bias_correction=False), search=True)
    report = quantize(net(), feeds(32, 3, 8, 8), replace(coarse, goals=Goals(min_sqnr_db=99.0))).report
    assert [each.name for each in report.tries] == ["as given", "better choices at no cost"]
    assert report.tries[1].sqnr_db > report.tries[0].sqnr_db
    assert report.recipe["weights"]["granularity"] == "per-channel"


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run, count = goals.run, itertools.count(1)

    def fragile(*given: Any) -> Result:
        if next(count) == number:
            raise KeyboardInterrupt
        return run(*given)

    monkeypatch.setattr(goals, "run", fragile)


def test_interrupted_it_gives_what_it_has(as_given: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(goals=Goals(min_sqnr_db=as_given.report.proof.comparison.sqnr_db + 4))
    whole = quantize(net(), feeds(32, 3, 8, 8), asked).report.tries
    first = next(index for index, each in enumerate(whole) if each.passed)
    if first + 1 < len(whole):
        interrupt_at(first + 2, monkeypatch)
        found = quantize(net(), feeds(32, 3, 8, 8), asked)
        assert found.report.tries == whole[: first + 1]
        assert found.report.verdict.passed
    monkeypatch.undo()
    interrupt_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantize(net(), feeds(32, 3, 8, 8), asked)


GOOD = {
    "sqnr >= 30": {"min_sqnr_db": 30.0},
    "sqnr>=30 dB": {"min_sqnr_db": 30.0},
    "agreement >= 0.99": {"min_agreement": 0.99},
    "agreement >= 99%": {"min_agreement": 0.99},
    "top1 drop <= 0.5": {"max_drop": 0.005},
    "top-1 drop <= 0.5%": {"max_drop": 0.005},
    "latency <= 0.5": {"max_latency_ratio": 0.5},
}


@pytest.mark.parametrize(("text", "field"), GOOD.items())
def test_goals_in_words(text: str, field: dict[str, float]) -> None:
    assert parse_goal(text) == pytest.approx(field)


@pytest.mark.parametrize(
    "text", ["", "sqnr", "sqnr <= 30", "drop >= 1", "accuracy >= 1", "sqnr >= 1.2.3", "sqnr >= 30%"]
)
def test_other_words_are_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match="--goal is"):
        parse_goal(text)


def test_data_that_flows_by_once_is_refused() -> None:
    with pytest.raises(RecipeError, match="more than once"):
        quantize(net(), iter(feeds(16, 3, 8, 8)), recipe(goals=Goals(min_sqnr_db=30.0)))
