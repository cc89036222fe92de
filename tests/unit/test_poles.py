"""Values near 0 that something divides by, or takes the logarithm of: no grid may round them to 0."""

from __future__ import annotations

import numpy as np
import pytest

from ptq import quantize
from ptq.passes.poles import relative_values
from tests.builders import Arrays, feeds, model_from_text, random

WEIGHTS = {"w": random((4, 3, 3, 3)), "v": random((4, 4, 3, 3), 1, 1.0), "one": random((1,), 2) * 0 + 1}


@pytest.mark.parametrize(
    "end",
    [
        "y = Log (s)",
        "y = Reciprocal (s)",
        "y = Div (one, s)",
        "m = Neg (one)  y = Pow (s, m)",
        "t = Transpose (s)  l = Log (t)  y = Transpose (l)",
    ],
)
def test_what_is_infinite_at_0_reads_float(end: str) -> None:
    text = f"""
    m (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {{
        a = Conv (x, w)
        r = Relu (a)
        b = Conv (r, v)
        s = Sigmoid (b)
        {end}
    }}"""
    report = quantize(model_from_text(text, WEIGHTS), feeds(48, 3, 8, 8)).report
    assert "infinite" in report.left_float["s"]
    assert len(report.layers) == 2


def test_what_is_finite_at_0_reads_codes() -> None:
    text = """
    m (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
        a = Conv (x, w)
        s = Sigmoid (a)
        y = Div (s, one)
    }"""
    assert "s" not in quantize(model_from_text(text, WEIGHTS), feeds(48, 3, 8, 8)).report.left_float


AUDIO: Arrays = {
    "real": random((33, 1, 64), 1), "imaginary": random((33, 1, 64), 2), "bank": np.abs(random((33, 12), 3)),
    "tiny": np.float32(1e-6), "least": np.float32(1e-10), "one": np.float32(1), "many": np.float32(1e6),
    "half": np.float32(0.5), "two": np.float32(2), "minus": np.float32(-0.5), "last": np.array([-1]),
    "k": random((12, 12), 4), "g": random((12,), 5),
}  # fmt: skip
SPECTRUM = """a = Conv <strides = [16]> (x, real)  b = Conv <strides = [16]> (x, imaginary)
    aa = Mul (a, a)  bb = Pow (b, two)  p = Add (aa, bb)  t = Transpose <perm = [0, 2, 1]> (p)"""


def near(body: str) -> set[str]:
    """Names of the values whose relative errors count."""
    text = f"m (float[N, 1, 256] x) => (float[N, T, 12] y) {{ {SPECTRUM} {body} }}"
    return {str(value.name) for value in relative_values(model_from_text(text, AUDIO).graph)}


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul (t, bank)  c = Add (m, tiny)  y = Log (c)",
        "m = MatMul (t, bank)  c = Clip (m, least)  l = Log (c)  y = Mul (l, half)",
        "s = Sqrt (t)  m = MatMul (s, bank)  c = Add (m, least)  d = Clip (c, least)  y = Log (d)",
        "m = MatMul (t, bank)  c = Mul (m, many)  d = Add (c, one)  y = Log (d)",  # log1p, of 1e6 times the value
    ],
)
def test_a_spectrum_in_front_of_a_logarithm_is_float_as_a_whole(body: str) -> None:
    assert {"a", "b", "m"} <= near(body)


@pytest.mark.parametrize(
    ("body", "far"),
    [
        ("m = MatMul (t, bank)  c = Add (m, one)  y = Log (c)", {"a", "m"}),  # log1p
        ("m = MatMul (t, bank)  e = Exp (m)  c = Add (e, one)  y = Log (c)", {"m", "e"}),  # softplus
        ("m = MatMul (t, bank)  q = MatMul (m, k)  y = Log (q)", {"a", "m"}),  # a layer that also subtracts
        ("m = MatMul (t, bank)  q = Mul (m, m)  r = ReduceMean (q, last)  e = Add (r, tiny)  s = Sqrt (e)"
         "  y = Div (m, s)", {"a", "m", "q"}),  # a norm
        ("m = MatMul (t, bank)  q = Pow (m, two)  r = ReduceMean (q, last)  e = Add (r, tiny)  s = Pow (e, minus)"
         "  y = Mul (m, s)", {"a", "m", "q"}),
        ("m = MatMul (t, bank)  n = Neg (m)  e = Exp (n)  d = Add (e, one)  y = Div (m, d)", {"m", "e"}),  # a swish
        ("s = Sqrt (t)  y = MatMul (s, bank)", {"a", "b"}),  # of squares: as large an error as before
        ("m = MatMul (t, bank)  y = Div (m, two)", {"a", "m"}),
    ],
)  # fmt: skip
def test_what_does_not_come_near_zero_is_rounded(body: str, far: set[str]) -> None:
    assert not near(body) & far


def test_one_minus_a_value_has_its_pole_at_one() -> None:
    text = "m (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid (x)  d = Sub (one, s)  y = Log (d) }"
    values = relative_values(model_from_text(text, AUDIO).graph)
    assert {str(value.name) for value in values} == {"d", "s"}


def test_a_front_end_in_the_graph_keeps_its_accuracy() -> None:
    text = f"""m (float[N, 1, 1024] x) => (float[N, T, 12] y) {{ {SPECTRUM}
        m = MatMul (t, bank)  c = Add (m, tiny)  l = Log (c)  u = MatMul (l, k)  r = Relu (u)  y = MatMul (r, k) }}"""
    loudness = np.geomspace(1e-3, 1.0, 48)
    samples = [
        {"x": (sample["x"] * level).astype(np.float32)}
        for sample, level in zip(feeds(48, 1, 1024), loudness, strict=True)
    ]
    report = quantize(model_from_text(text, AUDIO), samples).report
    assert set(report.left_float) == {"a", "b", "m"}
    assert "Log" in report.left_float["m"]
    assert report.proof.comparison.sqnr_db > 25
