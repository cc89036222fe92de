"""Values near 0 that something divides by, or takes the logarithm of: no grid may round them to 0."""

from __future__ import annotations

import pytest

from ptq import quantize
from tests.builders import feeds, model_from_text, random

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
