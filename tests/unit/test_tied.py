"""Tied tables: read by Gather and, transposed, by the product at the end; their codes lie in the file once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.api import Result
from ptq.calibration.observers import Dynamic
from ptq.passes import prepare
from ptq.passes.lifting import weights_of
from ptq.passes.placing import place
from ptq.passes.tied import tied_names
from ptq.recipe import Weights
from ptq.weights import Gptq, Rtn
from tests.builders import model_from_text, random

ROWS, WIDTH = 300, 32
LAST = {
    "MatMul": "t = Transpose <perm = [1, 0]> (table)\n y = MatMul (n, t)",
    "Gemm": "f = Reshape (n, flat)\n y = Gemm <transB = 1> (f, table)",
}


def tied(last: str) -> ir.Model:
    out = "float[S, 300] y" if last == "Gemm" else "float[1, S, 300] y"
    text = f"""
    net (int64[1, S] ids) => ({out}) {{
        e = Gather (table, ids)
        h = MatMul (e, w)
        r = Tanh (h)
        n = LayerNormalization <axis = -1> (r, gain, shift)
        {LAST[last]}
    }}"""
    weights = {
        "table": random((ROWS, WIDTH), 1), "w": random((WIDTH, WIDTH), 2), "gain": np.ones(WIDTH, np.float32),
        "shift": np.zeros(WIDTH, np.float32), "flat": np.array([-1, WIDTH]),
    }  # fmt: skip
    return model_from_text(text, weights)


def samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"ids": rng.integers(0, ROWS, (1, 9))} for _ in range(16)]


FOUR = Weights(Rtn(), bits=4)
RECIPES = {
    "static": Recipe("cpu-x86"),
    "dynamic": Recipe("cpu-x86", Dynamic()),
    "weight-only": Recipe("cpu-x86", weight_only=True),
    "native": Recipe("native"),
    "native, dynamic": Recipe("native", Dynamic()),
    "portable": Recipe("portable"),
    "static, 4 bits": Recipe("cpu-x86", weights=FOUR, accept_poor=True),
    "weight-only, 4 bits": Recipe("cpu-x86", weights=FOUR, weight_only=True, accept_poor=True),
    "native, 4 bits": Recipe("native", weights=FOUR, accept_poor=True),
    "gptq": Recipe("cpu-x86", weights=Weights(Gptq())),
    "gptq, 4 bits": Recipe("cpu-x86", Dynamic(), Weights(Gptq(), bits=4), accept_poor=True),
}


def num_codes(result: Result) -> int:
    return sum(row.num_weights for row in result.report.layers)


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("name", RECIPES)
def test_codes_lie_in_the_file_once(name: str, last: str) -> None:
    recipe = RECIPES[name]
    result = quantize(tied(last), samples(), recipe)
    bits = 8 if recipe.weights.bits == 8 else 6  # rows have two more, and the product shares them
    least = (ROWS * WIDTH * bits + WIDTH * WIDTH * recipe.weights.bits) / 8
    assert result.report.storage["codes"] <= 1.02 * least + 64
    assert result.delivery.num_bytes < len(ir.to_proto(tied(last)).SerializeToString())
    assert result.report.proof.comparison.sqnr_db > (28 if bits == 8 else 14)
    names = [value.name for value in result.delivery.model.graph.initializers.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_the_product_still_runs_on_integers(name: str) -> None:
    kernels = quantize(tied("MatMul"), samples(), RECIPES[name]).report.proof.kernels
    assert not kernels.fallbacks
    assert sum(kernels.integer.values()) == 2


BLOCKS = [
    Recipe("cpu-x86", weights=Weights(Rtn(), bits=4, granularity="block-16"), weight_only=True, accept_poor=True),
    Recipe("cpu-x86", weights=Weights(Rtn(), bits=8, granularity="block-16"), weight_only=True),
    Recipe("native", Dynamic(), Weights(Rtn(), bits=4, granularity="block-16"), accept_poor=True),
]


@pytest.mark.parametrize("recipe", BLOCKS, ids=["4 bits", "8 bits", "native"])
def test_rows_are_picked_out_of_blocks(recipe: Recipe) -> None:
    result = quantize(tied("MatMul"), samples(), recipe)
    assert result.report.storage["codes"] <= 1.05 * num_codes(result) * recipe.weights.bits / 8 + 700  # and zero points
    assert result.report.proof.comparison.sqnr_db > (35 if recipe.weights.bits == 8 else 12)
    assert not result.report.proof.kernels.fallbacks


@pytest.mark.parametrize("last", LAST)
def test_both_readers_have_the_same_weight(last: str) -> None:
    lifted = weights_of(quantize(tied(last), samples(), RECIPES["weight-only"]).delivery.model)
    np.testing.assert_array_equal(lifted["table"].codes, lifted["y"].codes)  # type: ignore[union-attr]
    np.testing.assert_allclose(lifted["table"].decode(), lifted["y"].decode(), rtol=1e-3)  # scales of rows are short


def test_what_is_tied_is_found_by_its_numbers() -> None:
    feed = samples()[0]
    for last in LAST:
        prepared, _ = prepare(tied(last), feed)
        assert tied_names(prepared) == {"y"}
        assert [table.product for table in place(prepared).tables] == ["y"]
    prepared, _ = prepare(model_from_text(
        "net (int64[1, S] ids) => (float[1, S, 300] y) { e = Gather (table, ids)\n y = MatMul (e, u) }",
        {"table": random((ROWS, WIDTH), 1), "u": random((WIDTH, ROWS), 2)},
    ), feed)  # fmt: skip
    assert tied_names(prepared) == frozenset()
