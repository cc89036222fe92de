"""Factors and shifts of channels: which go into the layer before them, and which may not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ptq import quantize
from ptq.passes import prepare
from ptq.passes.check_equivalence import float_outputs
from ptq.passes.fold_affine import AFFINE, FoldAffine
from tests.builders import feeds, model_from_text, random
from tests.contracts.test_passes import channels_scaled_and_shifted

IMAGE = "net (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y)"
WEIGHTS = {
    "w": random((4, 3, 3, 3)),
    "g": random((1, 4, 1, 1), 1),
    "flat": random((4,), 2),
    "h": np.array([[[1.0]], [[0.0]], [[2.0]], [[3.0]]], np.float32),
    "b": random((4,), 3),
    "five": random((1, 1, 4, 1, 1), 4),
}


def left(text: str) -> Counter[str]:
    """Operators after folding, whose outputs are as before."""
    model = model_from_text(f"{IMAGE} {{ {text} }}", WEIGHTS)
    feed = {"x": random((1, 3, 6, 6), 9)}
    before = float_outputs(model, feed)
    after = FoldAffine()(model.clone()).model
    for name, value in float_outputs(after, feed).items():
        np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=1e-5)
    return Counter(node.op_type for node in after.graph)


@pytest.mark.parametrize(
    "text",
    [
        "a = Conv (x, w)  y = Mul (a, g)",
        "a = Conv (x, w)  y = Mul (g, a)",
        "a = Conv (x, w, b)  y = Sub (a, h)",
        "a = Conv (x, w, b)  y = Sub (h, a)",
        "a = Conv (x, w)  c = Mul (a, g)  d = Add (h, c)  e = Div (d, g)  y = Sub (e, h)",
    ],
)
def test_constants_of_channels_go_into_the_layer(text: str) -> None:
    assert left(text) == {"Conv": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a = Conv (x, w)  y = Mul (a, flat)",  # along the last axis
        "a = Conv (x, w)  y = Div (g, a)",
        "a = Conv (x, w)  y = Div (a, h)",  # by 0
        "a = Conv (x, w)  y = Add (a, a)",
        "a = Conv (x, w)  r = Relu (a)  y = Mul (r, g)",
        "a = Conv (x, w)  c = Conv (x, w)  d = Mul (a, g)  y = Add (c, d)",  # a weight of two layers
    ],
)
def test_what_is_no_constant_of_channels_stays(text: str) -> None:
    plain = model_from_text(f"{IMAGE} {{ {text} }}", WEIGHTS)
    assert left(text) == Counter(node.op_type for node in plain.graph)


def test_what_is_read_twice_stays() -> None:
    found = left("a = Conv (x, w)  c = Add (a, h)  d = Clip (c)  y = Mul (a, d)")
    assert found == {"Conv": 1, "Add": 1, "Clip": 1, "Mul": 1}, "a hard swish"


@pytest.mark.parametrize("rows", [4, 6])
def test_a_bias_per_row_stays(rows: int) -> None:
    """Gemm adds what is as tall as its result too: no number per channel, though there may be as many."""
    text = f"net (float[{rows}, 3] x) => (float[{rows}, 4] y) {{ a = Gemm (x, w, c)  y = Mul (a, g) }}"
    weights = {"w": random((3, 4)), "c": random((rows, 1), 1), "g": random((4,), 2)}
    folded = FoldAffine()(model_from_text(text, weights)).model
    assert [node.op_type for node in folded.graph] == ["Gemm", "Mul"]


def test_no_channel_arithmetic_stays_in_float() -> None:
    prepared, _ = prepare(channels_scaled_and_shifted(), feeds(1, 4, 8, 8)[0])
    assert not [node.op_type for node in prepared.graph if node.op_type in AFFINE]
    found = quantize(channels_scaled_and_shifted(), feeds(64, 4, 8, 8))
    assert found.report.proof.comparison.sqnr_db > 25
