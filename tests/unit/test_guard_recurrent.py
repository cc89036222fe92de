"""Recurrent layers whose inputs and weights differ in size from feature to feature: scales that fit, or float."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.api import Result
from ptq.calibration.observers import Dynamic
from ptq.passes.lifting import weights_of
from ptq.passes.stored import GATES, StoredWeight
from ptq.recipe import Weights
from ptq.transforms.guard_recurrent import COLUMNS, _Side
from tests.builders import model_from_text, random

WIDTH, INPUTS = 16, 20
STATIC, DYNAMIC = Recipe("cpu-x86", accept_poor=True), Recipe("cpu-x86", Dynamic(), accept_poor=True)
WIDER = 150.0


def recurrent(wider: float = WIDER, op_type: str = "LSTM", width: int = WIDTH) -> ir.Model:
    """A recurrent layer some of whose inputs have large weights, and a product behind it."""
    gates = {"LSTM": 4, "GRU": 3}[op_type] * width
    outputs = "h, last, cell" if op_type == "LSTM" else "h, last"
    text = f"""
    net (float[S, 1, {INPUTS}] x) => (float[S, 1, 5] y) {{
        {outputs} = {op_type} <hidden_size = {width}> (x, w, r, b)
        f = Reshape (h, shape)
        y = MatMul (f, wo)
    }}"""
    w = random((1, gates, INPUTS), 1, 0.1)
    w[:, :, ::5] *= wider
    weights = {
        "w": w, "r": random((1, gates, width), 2, 0.1), "b": random((1, 2 * gates), 3, 0.1),
        "wo": random((width, 5), 4), "shape": np.array([-1, 1, width]),
    }  # fmt: skip
    return model_from_text(text, weights)


def sequences(wider: float = WIDER) -> list[dict[str, Any]]:
    """Inputs that are the smaller, the larger their weights are."""
    rng, scale = np.random.default_rng(0), np.ones(INPUTS)
    scale[::5] /= wider
    return [{"x": (rng.standard_normal((12, 1, INPUTS)) * scale).astype(np.float32)} for _ in range(16)]


def made(recipe: Recipe, wider: float = WIDER, op_type: str = "LSTM") -> Result:
    return quantize(recurrent(wider, op_type), sequences(wider), recipe)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC, Recipe(weight_only=True)], ids=["static", "dynamic", "weights"])
def test_weights_whose_columns_differ_get_scales_for_columns(recipe: Recipe, op_type: str) -> None:
    result = made(recipe, op_type=op_type)
    assert result.report.proof.comparison.sqnr_db > 30
    scales = {v.name: list(v.shape) for v in result.delivery.model.graph.initializers.values() if v.shape}
    assert scales["w_scale"] == [1, 1, INPUTS]
    assert scales["r_scale"] == [1, recurrent(op_type=op_type).graph.initializers["r"].shape[1], 1]  # type: ignore[index]
    assert weights_of(result.delivery.model)["w"].shape[0] == INPUTS


def test_a_layer_that_integers_would_ruin_keeps_its_float_kernel() -> None:
    report = made(DYNAMIC).report
    assert "its gates keep only" in report.left_float["h"]
    assert report.left_float["h"].endswith("float kernel, weight on codes")
    assert "DynamicQuantizeLSTM" not in report.proof.kernels.integer


def test_an_ordinary_layer_stays_on_integers_with_scales_for_rows() -> None:
    result = made(DYNAMIC, wider=1.0)
    assert result.report.proof.kernels.integer["DynamicQuantizeLSTM"] == 1
    assert result.report.left_float == {}
    assert made(STATIC, wider=1.0).report.proof.comparison.sqnr_db > 30


@pytest.mark.parametrize(
    ("recipe", "width", "wider", "op_type"),
    [
        (STATIC, 64, 1.0, "LSTM"),
        (STATIC, 32, 1.0, "LSTM"),  # no faster on integers
        (STATIC, 64, WIDER, "LSTM"),  # ruined by them
        (STATIC, 64, 1.0, "GRU"),  # onnxruntime has no integer kernel
        (Recipe("portable"), 64, 1.0, "LSTM"),  # sums of bytes may overflow
        (Recipe("cpu-x86", weights=Weights(bits=4), accept_poor=True), 64, 1.0, "LSTM"),
        (Recipe("cpu-x86", weight_only=True), 64, 1.0, "LSTM"),
        (Recipe("cpu-x86", exclude=("h",)), 64, 1.0, "LSTM"),
    ],
)
def test_with_fixed_ranges_an_lstm_is_on_integers_where_these_are_faster_and_keep_its_gates(
    recipe: Recipe, width: int, wider: float, op_type: str
) -> None:
    result = quantize(recurrent(wider, op_type, width), sequences(wider), recipe)
    taken = recipe == STATIC and (width, wider, op_type) == (64, 1.0, "LSTM")
    assert ("DynamicQuantizeLSTM" in result.report.proof.kernels.integer) == taken
    assert ("h" in result.report.left_float) == (not taken and not recipe.weight_only)
    words = {32: "below 64 features", 64: "gates keep only" if wider > 1 and op_type == "LSTM" else ""}[width]
    assert words in result.report.left_float.get("h", words)
    assert any("multiplied as integers: LSTM h" in note for note in result.report.notes) == taken
    assert result.report.proof.comparison.sqnr_db > (25 if recipe.weights.bits == 8 else 10)


def test_the_user_says_how_much_integers_must_keep() -> None:
    lenient = Recipe("cpu-x86", Dynamic(), min_input_sqnr_db=-20.0, accept_poor=True)
    assert made(lenient).report.proof.kernels.integer["DynamicQuantizeLSTM"] == 1


def test_short_words_are_held_to_what_they_can() -> None:
    result = made(Recipe("cpu-x86", weight_only=True, weights=Weights(bits=4), accept_poor=True), wider=1.0)
    assert {"w", "r"} <= weights_of(result.delivery.model).keys()


def side(array: np.ndarray[Any, Any], power: np.ndarray[Any, Any]) -> _Side:
    return _Side(StoredWeight("w", array.shape, GATES), array, power, 0.0, 8)


def test_a_weight_that_neither_rows_nor_columns_fit_stays_float() -> None:
    rng = np.random.default_rng(0)
    array, power = rng.standard_normal((1, 64, 32)), np.ones((1, 32))
    assert side(array, power).axes() == GATES
    array[:, :, ::5] *= WIDER
    power[:, ::5] /= WIDER**2
    assert side(array, power).axes() == COLUMNS
    array[:, ::7] *= WIDER  # now a scale per column is set by few rows, as one per row is by few columns
    assert side(array, power).axes() == ()


def test_gates_that_stay_float_are_no_constants_on_codes() -> None:
    model = recurrent()
    gates = model.graph.initializers["w"].const_value.numpy().copy()  # type: ignore[union-attr]
    gates[:, ::7] *= WIDER
    model.graph.initializers["w"].const_value = ir.tensor(gates, name="w")
    result = quantize(model, sequences(), STATIC)
    lifted = weights_of(result.delivery.model)
    assert "w" not in lifted
    assert "r" in lifted
