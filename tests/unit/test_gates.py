"""Hard sigmoids and hard swishes on codes: a clip of codes, and a product."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.core.affine import Range, dequantize
from ptq.core.affine import quantize as to_codes
from ptq.core.ramp import Ramp
from ptq.core.spec import QuantSpec
from tests.builders import Arrays, feeds, model_from_text, random

WEIGHTS: Arrays = {
    "w": random((8, 3, 3, 3), 0, 0.8), "v": random((8, 8, 3, 3), 1), "f": random((4, 8, 1, 1), 2),
    "e": random((8, 4, 1, 1), 3), "o": random((6, 8, 1, 1), 4), "shift": np.float32(-0.7), "low": np.float32(-0.4),
    "g": random((8, 1, 1), 5),
}  # fmt: skip
NET = "net (float[N, 3, 10, 10] x) => (float[N, 6, H, W] y)"


def lowered(body: str, target: str = "cpu-x86") -> tuple[ir.Model, float, Counter[str]]:
    """The delivered model, its SQNR and its float operators between integers."""
    result = quantize(model_from_text(f"{NET} {{ {body} }}", WEIGHTS), feeds(48, 3, 10, 10), Recipe(target=target))
    proof = result.report.proof
    return result.delivery.model, proof.comparison.sqnr_db, Counter(proof.kernels.islands)


@given(
    st.sampled_from([(1 / 6, 0.5), (0.2, 0.5), (0.25, 0.3)]), st.floats(-30, 0), st.floats(0, 30), st.booleans(),
    st.sampled_from([QuantSpec(), QuantSpec(signed=True), QuantSpec(num_bits=6)]),
)  # fmt: skip
def test_clipped_codes_are_the_codes_of_the_ramp(
    form: tuple[float, float], low: float, high: float, cut: bool, spec: QuantSpec
) -> None:
    ramp = Ramp(*form)
    grid = ramp.fit(Range.of(low, high), spec, cut=cut)
    x = np.linspace(ramp.foot if cut else min(low, ramp.foot), max(high, 0.1), 400).astype(np.float32)
    codes = to_codes(x, grid)
    rounded = dequantize(codes, grid).astype(np.float64)
    clipped = np.clip(codes, *ramp.ends(grid))
    found = dequantize(clipped, ramp.gate(grid))
    wanted = np.clip(ramp.alpha * rounded + ramp.beta, 0.0, 1.0)
    half = 0.5 * ramp.alpha * float(grid.scale) if form[1] != 0.5 else 0.0  # where the top lies between codes
    np.testing.assert_allclose(found, wanted, atol=half + 1e-5)
    least = max((max(high, 0.0) - (ramp.foot if cut else min(low, ramp.foot))) / (spec.qmax - spec.qmin), 1e-30)
    assert float(grid.scale) >= 0.999 * min(least, -ramp.foot)
    assert float(grid.scale) <= 2.001 * max(least, -ramp.foot / (spec.qmax - spec.qmin))


SWISH = "a = Conv (x, w)  s = HardSwish (a)  y = Conv (s, o)"
BLOCK = """a = Conv (x, w)  s = HardSwish (a)  d = Conv (s, v)  m = ReduceMean <axes = [2, 3]> (d)
    f1 = Conv (m, f)  r = Relu (f1)  f2 = Conv (r, e)  g0 = HardSigmoid <alpha = 0.2> (f2)
    p = Mul (d, g0)  q = HardSwish (p)  y = Conv (q, o)"""


@pytest.mark.parametrize("body", [SWISH, BLOCK], ids=["swish", "block"])
@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm", "portable"])
def test_nothing_floats_between_convolutions(body: str, target: str) -> None:
    model, sqnr_db, islands = lowered(body, target)
    assert target == "cpu-arm" or not islands  # on this processor onnxruntime has no signed product
    assert sqnr_db > 30
    assert not {"HardSwish", "HardSigmoid"} & {node.op_type for node in model.graph}


def test_a_grid_need_not_reach_what_a_hard_swish_sets_to_zero() -> None:
    model, _, _ = lowered(SWISH)
    (pair,) = (node for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "a")
    scale, zero = (value.const_value.numpy() for value in pair.inputs[1:])
    assert float(scale) * int(zero) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("a = Conv (x, w)  s = HardSigmoid (a)  y = Conv (s, o)", "HardSigmoid"),  # nothing is multiplied
        ("a = Conv (x, w)  s = HardSigmoid <alpha = -1.0> (a)  m = Mul (a, s)  y = Conv (m, o)", "HardSigmoid"),
        ("a = Conv (x, w)  s = HardSigmoid (a)  t = Abs (a)  m = Mul (s, t)  y = Conv (m, o)", "HardSigmoid"),
    ],
)
def test_other_hard_sigmoids_stay_float(body: str, operator: str) -> None:
    model, sqnr_db, _ = lowered(body)
    assert operator in {node.op_type for node in model.graph}
    assert sqnr_db > 25


def test_two_ramps_on_one_value_and_a_reader_beside_them() -> None:
    body = """a = Conv (x, w)  s = HardSigmoid (a)  t = HardSigmoid <alpha = 0.4> (a)  m = Mul (a, s)  n = Mul (a, t)
        p = Conv (m, o)  q = Conv (n, o)  r = Conv (a, o)  u = Add (p, q)  y = Add (u, r)"""
    model, sqnr_db, _ = lowered(body)
    assert [node.op_type for node in model.graph].count("HardSigmoid") == 1
    assert sqnr_db > 30


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_number_beside_codes_is_a_code(op: str) -> None:
    body = f"a = Conv (x, w)  s = HardSwish (a)  t = {op} (s, shift)  y = Conv <pads = [1, 1, 1, 1]> (t, o)"
    _, sqnr_db, islands = lowered(body)
    assert not islands
    assert sqnr_db > 30


def test_a_number_behind_the_last_layer_is_added_in_float() -> None:
    model, _, _ = lowered("a = Conv (x, w)  b = Conv (a, o)  s = HardSwish (b)  y = Add (s, shift)")
    assert "Add" in {node.op_type for node in model.graph}
    last = next(node for node in model.graph if node.op_type == "Add")
    assert "shift" in {value.name for value in last.inputs if value is not None}


@pytest.mark.parametrize("end", ["Max (a, low)", "Clip (a, low)"])
def test_limits_around_zero_disappear_into_the_grid(end: str) -> None:
    _, sqnr_db, islands = lowered(f"a = Conv (x, w)  b = {end}  y = Conv (b, o)")
    assert not islands
    assert sqnr_db > 30
