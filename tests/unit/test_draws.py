"""Random operators: models are compared with fixed draws, and delivered with their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.api import diff, validate
from ptq.models.draws import fixed_form, random_nodes, with_fixed_draws
from ptq.models.sessions import run, session_of
from ptq.passes import prepare
from tests.builders import feeds, model_from_text, random

SIZE = 4096
OPERATORS = {
    "n = RandomNormalLike <mean = 2.0, scale = 3.0> (x)": (2.0, 3.0),
    f"n = RandomNormal <mean = 1.0, shape = [1, {SIZE}]> ()": (1.0, 1.0),
    "n = RandomUniformLike <low = -1.0, high = 3.0> (x)": (1.0, 4 / 12**0.5),
    f"n = RandomUniform <shape = [1, {SIZE}]> ()": (0.5, 1 / 12**0.5),
    f"m = Multinomial <sample_size = {SIZE}> (logits)  n = Cast <to = 1> (m)": (1.6, 0.44**0.5),
    "n, m = Dropout (ones, ratio, training)": (1.0, 0.5),
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    "logits": np.log(np.array([[0.1, 0.2, 0.7]], np.float32)),
    "ones": np.ones((1, SIZE), np.float32),
    "ratio": np.array(0.2, np.float32),
    "training": np.array(True),
}


def drawing(operator: str) -> ir.Model:
    used = {name: array for name, array in CONSTANTS.items() if name in operator}
    return model_from_text(f"net (float[1, {SIZE}] x) => (float[1, {SIZE}] y) {{ {operator}  y = Add (n, x) }}", used)


@pytest.mark.parametrize("operator", OPERATORS)
def test_fixed_draws_are_distributed_as_the_operators_are(operator: str) -> None:
    model, zeros = drawing(operator), {"x": np.zeros((1, SIZE), np.float32)}
    with session_of(model) as session, session_of(model) as other:
        (first,), (again,), (beside,) = run(session, zeros), run(session, zeros), run(other, zeros)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, beside)
    mean, deviation = OPERATORS[operator]
    assert abs(first.mean() - mean) < 0.1 * deviation
    assert abs(first.std() - deviation) < 0.1 * deviation
    with session_of(model, fixed_draws=False) as session:
        assert not np.array_equal(run(session, zeros)[0], run(session, zeros)[0])


def test_results_of_other_names_get_other_draws_and_no_size_is_too_small() -> None:
    text = "net (float[N] x) => (float[N] a, float[N] b) { a = RandomNormalLike (x)  b = RandomNormalLike (x) }"
    with session_of(model_from_text(text, {})) as session:
        a, b = run(session, {"x": np.zeros(100, np.float32)})
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.5
        assert [each.shape for each in run(session, {"x": np.zeros(0, np.float32)})] == [(0,), (0,)]


def test_draws_keep_their_numbers_where_preparing_renames_them() -> None:
    text = """
    net (float[1, 8] x) => (float[1, 8] noise, float[1, 8] y) {
        n = RandomNormalLike (x)  noise = Identity (n)  s = Add (x, n)  y = MatMul (s, w)
    }"""
    model, sample = model_from_text(text, {"w": random((8, 8))}), feeds(1, 8)[0]
    prepared, _ = prepare(model, sample)
    with session_of(model) as before, session_of(prepared) as after:
        np.testing.assert_allclose(run(after, sample, ["noise"])[0], run(before, sample, ["noise"])[0])


def test_weights_in_a_file_beside_the_model_are_found(tmp_path: Path) -> None:
    sample = feeds(1, 4, 8, 8)[0]
    ir.save(noisy(), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    with session_of(tmp_path / "m.onnx") as beside, session_of(noisy()) as within:
        np.testing.assert_array_equal(run(beside, sample)[0], run(within, sample)[0])


def test_models_that_draw_nothing_are_left_alone() -> None:
    text = "net (float[1, 4] x) => (float[1, 4] y) { d = Dropout (x)  y = Neg (d) }"
    model = model_from_text(text, {})
    assert with_fixed_draws(model) is model
    data = ir.to_proto(model).SerializeToString()
    assert fixed_form(data) is data


def noisy() -> ir.Model:
    """Noise between convolutions, in the main graph and in a branch."""
    text = """
    net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w0)
        n = RandomNormalLike (c)
        s = Add (c, n)
        d = Conv <pads = [1, 1, 1, 1]> (s, w1)
        size = Size (x)
        many = Greater (size, zero)
        y = If (many) <
            then_branch = yes () => (float[N, 4, 8, 8] a) { u = RandomUniformLike (d)  a = Add (d, u) },
            else_branch = no () => (float[N, 4, 8, 8] b) { b = Neg (d) }
        >
    }"""
    weights = {"w0": random((4, 4, 3, 3), 1), "w1": random((4, 4, 3, 3), 2), "zero": np.array(0)}
    return model_from_text(text, weights)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True)])
def test_a_model_that_draws_is_compared_with_the_same_draws_and_delivered_as_it_is(recipe: Recipe) -> None:
    model, samples = noisy(), feeds(24, 4, 8, 8)
    first, again = quantize(model, samples, recipe), quantize(model, samples, recipe)
    assert first.report.proof.comparison.sqnr_db > 25
    assert first.report.card_json() == again.report.card_json()
    assert any("1 RandomNormalLike, 1 RandomUniformLike" in note for note in first.report.notes)
    assert [node.op_type for node in random_nodes(first.delivery.model)] == ["RandomNormalLike", "RandomUniformLike"]
    session = first.session()
    assert not np.array_equal(session.run(None, samples[0])[0], session.run(None, samples[0])[0])
    assert validate(model, first.delivery.model, samples).comparison.sqnr_db > 25
    assert diff(model, first.delivery.model, samples).sqnr_db > 25
