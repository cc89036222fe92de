"""Recurrent layers, and layers inside bodies: their weights lie on codes, and what they compute stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.calibration.observers import Dynamic
from ptq.passes.lifting import weights_of
from ptq.passes.planner import NO_KERNEL
from ptq.passes.stored import StoredWeight
from ptq.recipe import LayerRule, Weights
from ptq.weights import Rtn
from tests.builders import feeds, model_from_text, random
from tests.unit.test_balancing import sqnr_db
from tests.unit.test_transformers import language_model, tokens


def lstm(direction: str = "bidirectional", op_type: str = "LSTM") -> ir.Model:
    """A recurrent layer, and a product behind it."""
    ways, gates = (
        (2, {"LSTM": 4, "GRU": 3}[op_type]) if direction == "bidirectional" else (1, {"LSTM": 4, "GRU": 3}[op_type])
    )
    outputs = "h, last, cell" if op_type == "LSTM" else "h, last"
    text = f"""
    net (float[S, 1, 12] x) => (float[S, 1, 5] y) {{
        {outputs} = {op_type} <direction = "{direction}", hidden_size = 10> (x, w, r, b)
        t = Transpose <perm = [0, 2, 1, 3]> (h)
        f = Reshape (t, shape)
        y = MatMul (f, wo)
    }}"""
    weights = {
        "w": random((ways, gates * 10, 12), 1), "r": random((ways, gates * 10, 10), 2),
        "b": random((ways, gates * 20), 3), "wo": random((ways * 10, 5), 4), "shape": np.array([-1, 1, ways * 10]),
    }  # fmt: skip
    return model_from_text(text, weights)


def sequences(count: int = 24) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((7, 1, 12)).astype(np.float32)} for _ in range(count)]


def branches() -> ir.Model:
    """A convolution in each branch of an If: its own weights in one, those of the main graph in the other."""
    text = """
    net (float[1, 8, 8, 8] x) => (float[1, 6, 8, 8] y) {
        mean = ReduceMean <keepdims = 0> (x)
        positive = Greater (mean, zero)
        c = If (positive) <
            then_branch = yes () => (float[1, 6, 8, 8] a) { a = Conv <pads = [1, 1, 1, 1]> (x, w0) },
            else_branch = no () => (float[1, 6, 8, 8] b) { n = Neg (x)
                b = Conv <pads = [1, 1, 1, 1]> (n, w1) }
        >
        y = Conv (c, w2)
    }"""
    weights = {
        "w0": random((6, 8, 3, 3), 1), "w1": random((6, 8, 3, 3), 2), "w2": random((6, 6, 1, 1), 3),
        "zero": np.float32(0),
    }  # fmt: skip
    model = ir.to_proto(model_from_text(text, {k: np.asarray(v) for k, v in weights.items()}))
    inner = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    moved = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    inner.initializer.append(moved)
    model.graph.initializer.remove(moved)
    return ir.from_proto(model)


@given(st.permutations(range(4)), st.integers(1, 3))
def test_matrix_and_tensor_are_inverse(order: list[int], count: int) -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    weight = StoredWeight("w", array.shape, tuple(order[:count]))
    matrix = weight.to_matrix(array)
    np.testing.assert_array_equal(weight.to_tensor(matrix), array)
    rows = np.arange(len(matrix))
    if list(weight.axes) == sorted(weight.axes):
        np.testing.assert_array_equal(weight.to_matrix(weight.along(rows) + 0 * array)[:, 0], rows)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True), Recipe(activations=Dynamic())])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["bidirectional", "forward", "reverse"])
def test_recurrent_weights_lie_on_codes(recipe: Recipe, op_type: str, direction: str) -> None:
    model, samples = lstm(direction, op_type), sequences()
    result = quantize(model, samples, recipe)
    kept = {v.name: v for v in result.delivery.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT}
    assert not {"w", "r"} & set(kept)
    assert sqnr_db(result, model, samples) > (28 if recipe.weight_only else 22)
    how = "multiplied as integers" if recipe.is_dynamic and op_type == "LSTM" else "decoded when the session opens"
    assert f"2 weights on 8 bits, {how}: {op_type} h" in result.report.notes
    onnx.checker.check_model(ir.to_proto(result.delivery.model), full_check=False)


def test_dynamic_recurrent_layers_run_on_integers() -> None:
    result = quantize(lstm(), sequences(), Recipe(activations=Dynamic()))
    assert result.report.proof.kernels.integer["DynamicQuantizeLSTM"] == 1
    longer = {"x": np.random.default_rng(3).standard_normal((40, 1, 12)).astype(np.float32)}
    assert sqnr_db(result, lstm(), [longer]) > 28


def test_a_layer_whose_first_output_nobody_reads_has_a_name() -> None:
    text = """
    net (float[S, 1, 12] x) => (float[1, 5] y) {
        h, last = LSTM <hidden_size = 10> (x, w, r)
        f = Reshape (last, shape)
        y = MatMul (f, wo)
    }"""
    weights = {"w": random((1, 40, 12), 1), "r": random((1, 40, 10), 2), "wo": random((10, 5), 4)}
    model = model_from_text(text, weights | {"shape": np.array([-1, 10])})
    notes = quantize(model, sequences()).report.notes
    assert "2 weights on 8 bits, decoded when the session opens: LSTM last" in notes


def test_short_words_keep_two_bits_more() -> None:
    result = quantize(lstm(), sequences(), Recipe(weight_only=True, weights=Weights(bits=4)))
    assert any("2 weights on 6 bits" in note for note in result.report.notes)


def test_a_recurrent_layer_alone_is_enough() -> None:
    text = """
    net (float[S, 1, 12] x) => (float[S, D, 1, 10] h) {
        h, last, cell = LSTM <hidden_size = 10> (x, w, r)
    }"""
    model = model_from_text(text, {"w": random((1, 40, 12), 1), "r": random((1, 40, 10), 2)})
    for recipe in (Recipe(), Recipe(weight_only=True), Recipe(activations=Dynamic())):
        assert sqnr_db(quantize(model, sequences(), recipe), model, sequences()) > 28


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True)], ids=["static", "weight-only"])
def test_layers_of_both_branches_lie_on_codes(recipe: Recipe) -> None:
    model = branches()
    samples = [{"x": feed["x"] + sign} for feed in feeds(12, 8, 8, 8) for sign in np.float32([-0.5, 0.5])]
    result = quantize(model, samples, recipe)
    read = [value for node in result.delivery.model.graph.all_nodes() for value in node.inputs if value is not None]
    floats = [value for value in read if value.is_initializer() and value.dtype == ir.DataType.FLOAT]
    assert not [value for value in floats if value.shape == (6, 8, 3, 3)]
    assert sqnr_db(result, model, samples) > 30
    assert sum("inside If" in why for why in result.report.left_float.values()) == 2
    assert any("Conv a, Conv b" in note for note in result.report.notes)
    left = quantize(model, samples, Recipe(weight_only=True, exclude=("re:w2|y",)))
    assert sqnr_db(left, model, samples) > 30


@pytest.mark.parametrize("match", ["LSTM", "h"])
def test_rules_reach_recurrent_weights(match: str) -> None:
    recipe = Recipe(weight_only=True, layers=(LayerRule(match, bits=4, method=Rtn("mse")),))
    short, byte = (quantize(lstm(), sequences(), each) for each in (recipe, Recipe(weight_only=True)))
    assert any("2 weights on 4 bits" in note for note in short.report.notes)
    assert short.delivery.num_bytes < byte.delivery.num_bytes - 400


def test_rules_reach_tables() -> None:
    recipe = Recipe(layers=(LayerRule("Gather", bits=4),))
    result = quantize(language_model(), tokens(24), recipe)
    assert any("table: 300 rows on 4 bits" in note for note in result.report.notes)
    assert {row.num_bits for row in result.report.layers} == {8}


EXPERTS = {"one": random((4, 32, 64), 1, 0.1), "two": random((4, 64, 32), 2, 0.1), "r": random((32, 4), 3)}
MIXTURE = """net (float[N, 32] x) => (float y) {
    s = MatMul (x, r)
    h = com.microsoft.MoE <k = 2, activation_type = "gelu"> (x, s, one, , two)
    y = MatMul (h, r)
}"""


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True), Recipe(activations=Dynamic())])
def test_experts_of_a_mixture_lie_on_codes(recipe: Recipe, bits: int) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>\n{MIXTURE}')
    for key, array in EXPERTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    data = [{"x": random((3, 32), seed, 1.0)} for seed in range(16)]
    result = quantize(ir.from_proto(proto), data, replace(recipe, weights=Weights(bits=bits), accept_poor=True))
    floats = {} if recipe.weight_only else {"h": f"{NO_KERNEL}; float kernel, weight on codes"}
    assert result.report.left_float == floats
    assert {"one", "two"} <= weights_of(result.delivery.model).keys()
    assert result.report.proof.comparison.sqnr_db > (24 if bits == 8 else 14)
    assert result.report.storage["float"] < EXPERTS["one"].nbytes / 8
