"""Forms in which exporters write limits, hard activations and means, and constants in front of convolutions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from ptq.passes import PREPARE
from ptq.passes.check_equivalence import float_outputs, require_same
from tests.builders import Arrays, model_from_text, random

FEED = {"x": 4 * random((1, 4, 6, 6), 9, 1.0)}
NUMBERS: Arrays = {
    "zero": np.float32(0), "three": np.float32([3]), "six": np.float32(6), "low": np.float32(-0.4),
    "sixth": np.float32(0.16666667), "five": np.float32(5), "g": random((1, 4, 1, 1), 1), "cc": random((4,), 6),
    "w": random((4, 4, 3, 3)), "v": random((5, 4, 1, 1), 2), "bb": random((5,), 3), "d": random((8, 1, 3, 3), 4),
    "u": random((4, 4, 3, 3), 5), "k": random((1, 4, 1, 1), 7), "vast": np.float32([1e-44]),
    "shape": np.array([1, 4, 1, 1]), "axes": np.array([-1, 2]), "last": np.array([-1]), "h": random((4, 4, 1, 1), 8),
}  # fmt: skip


def prepared(text: str) -> ir.Model:
    """The model after the steps, whose outputs are as before."""
    model = model_from_text(f"net (float[N, 4, 6, 6] x) => (float[N, C, H, W] y) {{ {text} }}", NUMBERS, opset=18)
    after = model.clone()
    for step in PREPARE:
        step(after)
    require_same("prepare", float_outputs(model, FEED), float_outputs(after, FEED))
    return after


def left(text: str) -> Counter[str]:
    return Counter(node.op_type for node in prepared(text).graph)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("y = Max (x, low)", -0.4, None),
        ("y = Min (six, x)", None, 6.0),
        ("a = Max (x, zero)  y = Min (a, six)", 0.0, 6.0),
        ("a = Relu (x)  y = Min (a, six)", 0.0, 6.0),
        ("a = Clip (x, low, six)  y = Clip (a, zero)", 0.0, 6.0),
    ],
)
def test_limits_are_one_clip(text: str, low: float | None, high: float | None) -> None:
    (clip,) = prepared(text).graph
    ends = [None if end is None or end.const_value is None else end.const_value.numpy() for end in clip.inputs[1:]]
    assert clip.op_type == "Clip"
    assert [*ends, None][:2] == [None if end is None else np.float32(end) for end in (low, high)]


@pytest.mark.parametrize("text", ["y = Max (x, g)", "y = Max (x, x)", "a = Max (x, low)  b = Abs (a)  y = Add (a, b)"])
def test_other_limits_stay_readable(text: str) -> None:
    found = left(text)
    assert found["Max"] + found["Clip"] == 1


HARD = {
    "y = HardSwish (x)": {"HardSigmoid": 1, "Mul": 1},
    "a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (m, six)": {"HardSigmoid": 1, "Mul": 1},
    "a = Add (three, x)  c = Clip (a, zero, six)  m = Mul (c, x)  y = Mul (sixth, m)": {"HardSigmoid": 1, "Mul": 1},
    "a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (c, sixth)  y = Mul (x, m)": {"HardSigmoid": 1, "Mul": 1},
    "a = Add (x, three)  r = Relu (a)  c = Min (r, six)  y = Div (c, six)": {"HardSigmoid": 1},
    "a = Add (x, three)  c = Clip (a, zero, six)  m = Mul (x, c)  y = Div (m, five)": {
        "Add": 1, "Clip": 1, "Mul": 1, "Div": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "operators"), HARD.items(), ids=range(len(HARD)))
def test_hard_activations_have_one_form(text: str, operators: dict[str, int]) -> None:
    assert left(text) == operators


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("y = ReduceMean (x, axes)", {"GlobalAveragePool": 1}),
        ("a = Conv (x, w)  r = Relu (a)  m = Mul (r, g)  y = ReduceMean <keepdims = 0> (m, axes)",
         {"Conv": 1, "Relu": 1, "Mul": 1, "GlobalAveragePool": 1, "Flatten": 1}),
        ("y = ReduceMean (x)", {"ReduceMean": 1}),
        ("y = ReduceMean (x, last)", {"ReduceMean": 1}),
    ],
)  # fmt: skip
def test_means_of_images_are_pooling(text: str, operators: dict[str, int]) -> None:
    assert left(text) == operators


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("a = Mul (x, g)  y = Conv <pads = [1, 1, 1, 1]> (a, w)", {"Conv": 1}),
        ("a = Div (x, five)  y = Conv <group = 4, pads = [1, 1, 1, 1]> (a, d)", {"Conv": 1}),
        ("a = Mul (x, g)  b = Add (a, three)  y = Conv (b, v, bb)", {"Conv": 1}),
        ("a = Sub (g, x)  y = Conv (a, v)", {"Conv": 1}),
        ("a = Mul (x, five)  b = Add (a, three)  y = Conv <pads = [1, 1, 1, 1]> (b, w)", {"Add": 1, "Conv": 1}),
        ("a = Mul (x, g)  p = Conv <pads = [1, 1, 1, 1]> (a, w)  q = Conv <pads = [1, 1, 1, 1]> (a, u)  y = Add (p, q)",
         {"Conv": 2, "Add": 1}),
        ("r = Reshape (cc, shape)  a = Add (x, r)  y = Conv (a, v, bb)", {"Conv": 1}),
    ],
)  # fmt: skip
def test_constants_in_front_go_into_convolutions(text: str, operators: dict[str, int]) -> None:
    assert left(text) == operators


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("a = Add (x, three)  y = Conv <pads = [1, 1, 1, 1]> (a, w)", {"Add": 1, "Conv": 1}),
        ("a = Mul (x, g)  r = Conv (a, h)  y = Sub (r, a)", {"Mul": 1, "Conv": 1, "Sub": 1}),  # read twice
        ("a = Mul (x, zero)  y = Conv (a, v)", {"Mul": 1, "Conv": 1}),
        ("a = Mul (x, five)  p = Conv (a, h)  q = Conv (x, h)  y = Add (p, q)", {"Mul": 1, "Conv": 2, "Add": 1}),
    ],
)  # fmt: skip
def test_what_does_not_commute_stays(text: str, operators: dict[str, int]) -> None:
    assert left(text) == operators
