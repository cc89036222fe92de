"""A pass that computes the same is let through on outputs that say little, and one that does not is caught on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from ptq import quantize
from ptq.core.errors import EquivalenceError
from ptq.passes import prepare
from ptq.passes.check_equivalence import TOLERANCE, Original, float_outputs
from ptq.passes.graph import initializer_of
from tests.builders import feeds, model_from_text, random

DETECTOR = """net (float[N, 3, 16, 16] x) => (float[N, 1, 14, 14] y) {{
    a = Conv (x, w1)
    n = BatchNormalization (a, gamma, beta, mean, var)
    r = Relu (n)
    c = Conv (r, w2, b2)
    {}
}}"""
BLANK = np.ones((1, 3, 16, 16), np.float32)


def detector(tail: str = "y = Sigmoid (c)", level: float = -14.0) -> ir.Model:
    """Logits of a blank page lie at `level`."""
    weights = {
        "w1": random((32, 3, 3, 3), 1, 1.0), "w2": random((1, 32, 1, 1), 2, 1.0), "b2": np.zeros(1, np.float32),
        "gamma": 1 + np.abs(random((32,), 3)), "beta": random((32,), 4), "mean": 10 * random((32,), 5),
        "var": np.abs(random((32,), 6)) + 0.5,
    }  # fmt: skip
    model = model_from_text(DETECTOR.format("y = Identity (c)"), weights)
    inside = float_outputs(model, {"x": BLANK})["y"][0, 0, 8, 8]
    return model_from_text(DETECTOR.format(tail), weights | {"b2": np.array([level - inside], np.float32)})


def changed(model: ir.Model, change: Callable[[dict[str, ir.Value]], None]) -> ir.Model:
    copy = model.clone()
    change(dict(copy.graph.initializers))
    return copy


def scaled(name: str, factor: float) -> Callable[[dict[str, ir.Value]], None]:
    def change(values: dict[str, ir.Value]) -> None:
        tensor = values[name].const_value
        assert tensor is not None
        values[name].const_value = ir.tensor((tensor.numpy() * factor).astype(np.float32), name=name)

    return change


def test_rounding_that_a_blank_page_shows_is_no_fault_of_a_pass() -> None:
    """The runtime's Sigmoid has steps of 6e-8, whatever it comes to."""
    model, feed = detector(level=-13.5), {"x": BLANK}
    prepared, _ = prepare(model, feed)
    before, after = float_outputs(model, feed)["y"], float_outputs(prepared, feed)["y"]
    assert np.abs(before - after).max() > 100 * TOLERANCE * before.max()  # by this sample alone it would be one
    assert not any(node.op_type == "BatchNormalization" for node in prepared.graph)


def test_sums_that_cancel_may_round_as_what_they_are_made_of() -> None:
    """Rows of a table that are added and taken away again; what is left is a thousandth of them."""
    text = "net (int64[N] i, int64[N] j) => (float[N, 8] y) {{ a = Gather (t, i) b = Gather (u, j) y = {} }}"
    table = random((40, 64), 1, 100.0)
    weights = {"t": table, "u": table + random((40, 64), 2, 1e-3), "w": random((64, 8), 3)}
    model = model_from_text(text.format("MatMul (d, w)").replace("y =", "d = Sub (a, b) y ="), weights)
    parts = "p = MatMul (a, w) q = MatMul (b, w) y ="
    other = model_from_text(text.format("Sub (p, q)").replace("y =", parts), weights)
    feed = {"i": np.arange(40), "j": np.arange(40)}
    before, after = (float_outputs(each, feed)["y"] for each in (model, other))
    assert np.abs(before - after).max() > TOLERANCE * np.abs(before).max()
    Original(model, feed).require_same("Rounding", other)
    with pytest.raises(EquivalenceError, match="pass Wrong"):
        Original(model, feed).require_same("Wrong", changed(other, scaled("u", 1.001)))


def test_a_blank_page_first_does_not_stop_a_run() -> None:
    data = [{"x": BLANK}, *feeds(16, 3, 16, 16)]
    assert quantize(detector(level=-13.5), data).report.proof.comparison.num_samples


WRONG = pytest.mark.parametrize(("name", "factor"), [("w2", 1.001), ("gamma", 1.01), ("b2", 0.999), ("w1", -1.0)])


@WRONG
@pytest.mark.parametrize("level", [-40.0, -13.5, 20.0])
def test_a_wrong_pass_is_caught_on_a_blank_page(level: float, name: str, factor: float) -> None:
    model = detector(level=level)
    with pytest.raises(EquivalenceError, match=r"pass Wrong changed output 'y' by .* please report the model"):
        Original(model, {"x": BLANK}).require_same("Wrong", changed(model, scaled(name, factor)))


def test_decisions_that_rounding_turns_are_no_fault_of_a_pass() -> None:
    """Two classes with the same weights, one of them written in another order."""
    text = "net (float[N, 64] x) => (int64[N, 1] y) { a = MatMul (x, w) y = ArgMax <axis = 1> (a) }"
    column = random((64, 1), 1)
    model = model_from_text(text, {"w": np.hstack([column, np.nextafter(column, 1, dtype=np.float32)])})
    swapped = changed(model, lambda values: setattr(values["w"], "const_value", ir.tensor(np.hstack([column] * 2))))
    feed = {"x": random((20, 64), 2)}
    before, after = (float_outputs(each, feed)["y"] for each in (model, swapped))
    assert not np.array_equal(before, after)
    Original(model, feed).require_same("Rounding", swapped)
    other = changed(model, lambda values: setattr(values["w"], "const_value", ir.tensor(random((64, 2), 5))))
    clear = changed(model, lambda values: setattr(values["w"], "const_value", ir.tensor(random((64, 2), 6))))
    with pytest.raises(EquivalenceError, match=r"pass Wrong changed output 'y' in .* of its places"):
        Original(clear, feed).require_same("Wrong", other)


def test_the_original_stays_as_it_is() -> None:
    model = detector()
    before = initializer_of(model, "w1").copy()
    Original(model, {"x": BLANK}).require_same("Nothing", prepare(model, {"x": BLANK})[0])
    np.testing.assert_array_equal(initializer_of(model, "w1"), before)
