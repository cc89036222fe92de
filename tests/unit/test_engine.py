"""Wherever the parts of a calibration set are run, the result has the same bytes."""

from __future__ import annotations

import functools
import pickle
import random as shuffling
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Recipe, Result, quantize
from ptq.calibration import collect as collecting
from ptq.calibration import executor as engines
from ptq.calibration import shards as ledgers
from ptq.calibration.executor import Executor, Ray, Threads
from ptq.calibration.statistics import HistogramOf, MeanOf
from ptq.cli import main
from ptq.core.errors import CalibrationError, InputError
from ptq.recipe import Weights
from ptq.weights import Gptq
from tests.builders import feeds, model_from_text, random


@dataclass(frozen=True)
class Elsewhere:
    """Runs all parts in an order of its own, and the first one twice, as when a machine died over it."""

    seed: int

    def open(self) -> AbstractContextManager[None]:
        return nullcontext()

    def map(self, function: Callable[[Any, Any], Any], common: Any, items: Iterable[Any]) -> Iterator[Any]:
        common, parts = pickle.loads(pickle.dumps((common, list(items))))  # as machines get them
        order = list(range(len(parts)))
        shuffling.Random(self.seed).shuffle(order)
        function(common, parts[0])
        results = {index: function(common, parts[index]) for index in order}
        return (results[index] for index in range(len(parts)))


def net() -> ir.Model:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
        a = Conv (x, w, b)
        r = Relu (a)
        g = GlobalAveragePool (r)
        f = Flatten (g)
        y = Gemm (f, v)
    }"""
    weights = {"w": random((6, 3, 3, 3), 1), "b": random((6,), 2), "v": random((6, 4), 3)}
    return model_from_text(text, weights)


@functools.cache
def _wanted(part: int, recipe: Recipe) -> Result:
    """The run that is the same for every engine; `part` is in force when it is called."""
    assert part == ledgers.PART
    return quantize(net(), feeds(40, 3, 8, 8), recipe)


@pytest.mark.parametrize("engine", [Threads(1), Threads(3), Elsewhere(0), Elsewhere(1)], ids=str)
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weights=Weights(Gptq(), bits=4))], ids=["int8", "gptq"])
@pytest.mark.parametrize("part", [1, 7, 1000])
def test_any_engine_gives_the_same_bytes(
    engine: Executor, part: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "PART", part)
    found, wanted = quantize(net(), feeds(40, 3, 8, 8), recipe, engine=engine), _wanted(part, recipe)
    assert found.delivery.data == wanted.delivery.data
    assert found.report.card_json() == wanted.report.card_json()


def test_errors_name_the_sample_of_the_whole_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PART", 4)
    samples = feeds(12, 3, 8, 8)
    samples[9]["x"] = np.full_like(samples[9]["x"], 3e38)
    for engine in (Threads(2), Elsewhere(0)):
        with pytest.raises(CalibrationError, match="sample 8"):  # the eighth is held out
            quantize(net(), samples, engine=engine)


def test_without_ray_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install \"ptq\[ray\]\""):
        quantize(net(), feeds(9, 3, 8, 8), engine=Ray())
    ir.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((9, 3, 8, 8), np.float32))
    given = ["quantize", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "q.onnx")]
    result = CliRunner().invoke(main, [*given, "--engine", "ray"])
    assert result.exit_code == 2
    assert "pip install" in result.output
    result = CliRunner().invoke(main, [*given, "--address", "host:1"])
    assert result.exit_code == 2
    assert not (tmp_path / "q.onnx").exists()


def test_values_that_are_empty_in_some_parts_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PART", 3)
    model = model_from_text("net (float[N, S, 4] x) => (float[N, S, 4] y) { y = Relu (x) }", {})
    wanted = {"y": (HistogramOf(), MeanOf(2))}
    rows = [np.ones((1, index // 3, 4), np.float32) * index for index in range(9)]  # nothing in the first part
    for samples in (rows, rows[::-1]):
        given = [{"x": row} for row in samples]
        parts, whole = (collecting.collect(model, given, wanted, engine=each) for each in (Elsewhere(0), Threads(2)))
        parts, whole = parts.statistics, whole.statistics
        assert parts.num_samples == whole.num_samples == 9
        np.testing.assert_array_equal(parts.means["y"].table, whole.means["y"].table)
        assert (parts.histograms["y"].rmin, parts.histograms["y"].rmax) == (3, 8)
        np.testing.assert_array_equal(parts.histograms["y"].counts, whole.histograms["y"].counts)


def test_an_error_on_a_machine_is_told_without_its_traceback() -> None:
    class ToldError(CalibrationError):
        """As Ray hands it on: of the cause's type, with a traceback as its text."""

        cause = CalibrationError("tensor 'r' is NaN")

    class Fake:
        @staticmethod
        def get(_reference: object, timeout: float) -> None:
            raise ToldError(f"ray::part() (pid=1) after {timeout} s\n  File ...")

    with pytest.raises(CalibrationError, match=r"^tensor 'r' is NaN$"):
        engines._result(Fake, object())


@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_bytes() -> None:
    pytest.importorskip("ray", minversion="2.54")
    samples = feeds(40, 3, 8, 8)
    for recipe in (Recipe(), Recipe(weights=Weights(Gptq(), bits=4))):
        found = quantize(net(), samples, recipe, engine=Ray(num_workers=2))
        assert found.delivery.data == quantize(net(), samples, recipe).delivery.data
