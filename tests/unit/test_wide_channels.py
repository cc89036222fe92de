"""Depthwise convolutions with a few channels far wider than the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptq import Recipe, Result, quantize
from tests.builders import Arrays, feeds, model_from_text, random

CHANNELS = 16


def quantized(middle: str, widest: float, recipe: Recipe | None = None) -> Result:
    """A layer whose first channels are wide, something in the middle, a depthwise layer that evens them out again."""
    text = f"""net (float[N, 3, 12, 12] x) => (float[N, 6, 10, 10] y) {{
        a = Conv (x, w)  {middle}  d = Conv <group = {CHANNELS}> (s, v)  t = Relu (d)  y = Conv (t, o) }}"""
    reach = np.ones((CHANNELS, 1, 1, 1), np.float32)
    reach[:3] = widest
    weights: Arrays = {
        "w": reach * random((CHANNELS, 3, 1, 1), 0, 0.6), "v": random((CHANNELS, 1, 3, 3), 1) / reach,
        "o": random((6, CHANNELS, 1, 1), 2), "one": np.float32(1), "q": random((CHANNELS, CHANNELS, 1, 1), 3),
    }  # fmt: skip
    return quantize(model_from_text(text, weights), feeds(48, 3, 12, 12), recipe or Recipe(accept_poor=True))


@pytest.mark.parametrize("middle", ["s = HardSwish (a)", "g = Sigmoid (a)  h = Mul (a, g)  s = Add (h, one)"])
def test_wide_channels_are_computed_in_float(middle: str) -> None:
    report = quantized(middle, 40.0).report
    rounded = quantized(middle, 40.0, replace(Recipe(), min_input_sqnr_db=-200.0, accept_poor=True)).report
    assert not rounded.left_float
    assert report.proof.comparison.sqnr_db > rounded.proof.comparison.sqnr_db + 6.0


def test_the_reason_names_what_is_behind() -> None:
    report = quantized("s = HardSwish (a)", 40.0).report
    assert "dB" in report.left_float["d"]
    assert report.left_float["a"].endswith("for d behind it")
    assert not report.proof.kernels.islands


@pytest.mark.parametrize(
    ("middle", "widest"),
    [
        ("s = HardSwish (a)", 2.0),
        ("h = HardSwish (a)  m = MaxPool <kernel_shape = [1, 1]> (h)  s = Add (h, m)", 40.0),  # from several values
        ("h = HardSwish (a)  p = Conv (h, q)  s = Add (h, p)", 40.0),
    ],
)
def test_others_are_rounded(middle: str, widest: float) -> None:
    left = quantized(middle, widest).report.left_float
    assert not {"a", "d"} & set(left)


def test_even_channels_of_a_relu_are_scaled_instead() -> None:
    assert not quantized("s = Relu (a)", 40.0).report.left_float
