"""Values that one function reads, such as a swish: their grids reach as far as it tells values apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.calibration.observers import Auto, MinMax
from ptq.core.affine import Range
from ptq.core.curve import FLAT, Curve, Step
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram
from ptq.passes.curves import curve_of
from ptq.passes.placing import place
from ptq.recipe import Weights
from ptq.runtime import open_session
from ptq.solving.curved import narrowed
from ptq.weights import Rtn
from tests.builders import feeds, model_from_text, random
from tests.unit.test_balancing import sqnr_db

SWISH = Curve((Step("Sigmoid", (0,)), Step("Mul", (0, 1))), (2,))
FORMS = {
    "swish": "s = Sigmoid (a) y = Mul (a, s)",
    "quick gelu": "m = Mul (a, c) s = Sigmoid (m) y = Mul (s, a)",
    "gelu": "d = Div (a, r) e = Erf (d) p = Add (e, one) m = Mul (a, p) y = Mul (m, half)",
    "mish": "p = Softplus (a) t = Tanh (p) y = Mul (a, t)",
    "gate": "y = Sigmoid (a)",
    "tanh": "y = Tanh (a)",
    "elu": "y = Elu <alpha = 0.7> (a)",
    "hard swish": "y = HardSwish (a)",
    "hard sigmoid": "y = HardSigmoid <alpha = 0.3, beta = 0.4> (a)",
}
NUMBERS = {
    name: np.array(value, np.float32) for name, value in {"c": 1.702, "r": 2**0.5, "one": 1, "half": 0.5}.items()
}


def behind(text: str, more: str = "") -> ir.Model:
    return model_from_text(f"m (float[N, 4] x) => (float[N, 4] y{more}) {{ a = Identity (x) {text} }}", NUMBERS)


def value(model: ir.Model, name: str = "a") -> ir.Value:
    return next(v for node in model.graph for v in node.outputs if v.name == name)


@pytest.mark.parametrize("form", FORMS)
def test_functions_are_found_and_computed_as_onnxruntime_does(form: str) -> None:
    model = behind(FORMS[form])
    curve = curve_of(value(model))
    assert curve is not None
    rows = np.linspace(-12, 12, 400, dtype=np.float32).reshape(-1, 4)
    real = open_session(ir.to_proto(model).SerializeToString()).run(None, {"x": rows})[0]
    np.testing.assert_allclose(curve.of(rows.astype(np.float64))[0], real, atol=2e-5)


@pytest.mark.parametrize("op_type", sorted(FLAT))
def test_every_function_that_is_flat_gains_by_a_shorter_range(op_type: str) -> None:
    defaults = {"Elu": (1.0,), "HardSigmoid": (0.2, 0.5)}
    curve = Curve((Step(op_type, (0,), defaults.get(op_type, ())),), (1,))
    seen = Histogram.of(np.linspace(-90, 5, 5000, dtype=np.float32))
    assert float(narrowed(seen, curve, Range.of(-90.0, 5.0), QuantSpec()).rmin) > -30


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("s = Sigmoid (a) m = Mul (a, s) y = Add (m, x)", ", float[N, 4] a"),
        ("s = Sigmoid (a) y = Mul (x, a)", ", float[N, 4] s"),
        ("y = Mul (a, one)", ""),
        ("y = Softmax (a)", ""),
    ],
    ids=["an output itself", "read with another value", "flat nowhere", "no function of one number"],
)
def test_values_that_are_read_as_they_are_have_none(text: str, more: str) -> None:
    assert curve_of(value(behind(text, more))) is None


def test_what_others_read_ends_a_function() -> None:
    curve = curve_of(value(behind("s = Sigmoid (a) m = Mul (a, s) y = Mul (m, x)", ", float[N, 4] s")))
    assert curve is not None
    assert curve == Curve(SWISH.steps, (1, 2))


def test_a_range_is_never_worse_and_ends_where_a_swish_is_flat() -> None:
    seen = Histogram.of((random((4000,), 1, 20.0) - 20).clip(-90, 9).astype(np.float32))
    cut = narrowed(seen, SWISH, Range.of(-90.0, 9.0), QuantSpec())
    assert -12 < float(cut.rmin) < -3
    assert float(cut.rmax) > 8
    near = Histogram.of(random((4000,), 1, 0.2))
    assert float(narrowed(near, SWISH, Range.of(-0.8, 0.8), QuantSpec()).rmin) < -0.4


def deep() -> ir.Model:
    """Two convolutions with a swish between them whose input reaches far below 0 in some channels."""
    text = """m (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y)
    { a = Conv (x, w0, b) s = Sigmoid (a) p = Mul (a, s) y = Conv (p, w1) }"""
    bias = np.where(np.arange(16) % 4, 0.0, -150.0).astype(np.float32)
    weights = {"w0": random((16, 4, 1, 1), 0, 1.0), "b": bias, "w1": random((4, 16, 1, 1), 2)}
    return model_from_text(text, weights)


def test_a_network_of_swishes_gains_and_other_observers_keep_their_ranges() -> None:
    model, data = deep(), feeds(16, 4, 6, 6)
    assert list(place(model).curves.values()) == [SWISH]
    found = []
    for observer in (Auto(), MinMax()):
        result = quantize(model, data, Recipe(activations=observer, weights=Weights(Rtn()), accept_poor=True))
        found.append(sqnr_db(result, model, feeds(16, 4, 6, 6, seed=9)))
    assert found[0] > found[1] + 6


def test_a_function_whose_relative_errors_count_narrows_no_range() -> None:
    text = "m (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w) b = Sigmoid (a) y = Log (b) }"
    model = model_from_text(text, {"w": random((4, 4))})
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    assert curve_of(values["a"]) is not None
    assert curve_of(values["a"], {values["b"]}) is None
