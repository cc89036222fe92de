"""Transposes to channels last and back: which go, and what stays as it was."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ptq import Recipe, quantize
from ptq.passes import prepare
from ptq.passes.channels_first import ChannelsFirst
from ptq.passes.check_equivalence import float_outputs
from ptq.recipe import Weights
from ptq.runtime import open_session
from ptq.weights import Rtn
from tests.builders import feeds, model_from_text, random

HEAD = "net (float[N, 8, 8, 4] x) => (float y)"
WEIGHTS = {
    **{f"w{index}": random((4, 4, 3, 3), index, 0.3) for index in range(3)},
    "mean": random((4,), 4), "scale": np.abs(random((1, 1, 4), 5)) + 0.5, "offset": random((1, 1, 1, 4), 6),
    "slope": random((1, 1, 4), 7), "one": np.float32(1), "pads": np.array([0, 1, 2, 0, 0, 3, 4, 0]),
    "crop": np.array([0, -1, -2, 0, 0, -3, -4, 0]), "plane": np.array([1, 2]), "u": random((4, 4, 1, 1), 8),
    "wide": random((4, 8, 1, 1), 9), "axis": np.array(3), "places": random((8, 8, 1), 10),
    "five": random((1, 1, 1, 1, 4), 11), "zero": np.array([0]), "one_axis": np.array([1]),
}  # fmt: skip


def between(text: str, end: str = "y = Transpose <perm = [0, 2, 3, 1]> (c1)") -> str:
    """A convolution of v0, what makes b of it, and a convolution of that."""
    return f"""{HEAD} {{
        f0 = Transpose <perm = [0, 3, 1, 2]> (x)  c0 = Conv <pads = [1, 1, 1, 1]> (f0, w0)
        v0 = Transpose <perm = [0, 2, 3, 1]> (c0)
        {text}
        f1 = Transpose <perm = [0, 3, 1, 2]> (b)  c1 = Conv <pads = [1, 1, 1, 1]> (f1, w1)
        {end}
    }}"""


def left(text: str) -> Counter[str]:
    """Operators that are left; outputs have their names, order and numbers."""
    model, feed = model_from_text(text, WEIGHTS), {"x": random((2, 8, 8, 4), 9)}
    before, after = float_outputs(model, feed), ChannelsFirst()(model.clone()).model
    found = float_outputs(after, feed)
    assert list(found) == list(before)
    for name, value in found.items():
        np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=1e-5)
    return Counter(node.op_type for node in after.graph)


@pytest.mark.parametrize(
    "text",
    [
        "b = Identity (v0)",
        "d = Sub (v0, mean)  m = Mul (scale, d)  b = Add (offset, m)",
        "r = Relu (v0)  h = HardSigmoid (r)  b = Mul (r, h)",
        "b = Clip (v0, one, one)",
        "b = PRelu (v0, slope)",
        "b = Add (v0, v0)",
        "b = Add (v0, places)",
        "d = Max (v0, one)  p = Pad (d, pads)  b = Pad (p, crop, one)",
        "e = Exp (v0)  b = Softmax <axis = -1> (e)",
        "b = Softmax <axis = 1> (v0)",
        "l = Neg (v0)  c = Concat <axis = 3> (v0, l)  g = Transpose <perm = [0, 3, 1, 2]> (c)  k = Conv (g, wide)"
        "  b = Transpose <perm = [0, 2, 3, 1]> (k)",
        "m = ReduceMean <axes = [1, 2]> (v0)  g = Transpose <perm = [0, 3, 1, 2]> (m)  k = Conv (g, u)"
        "  t = Transpose <perm = [0, 2, 3, 1]> (k)  s = Sigmoid (t)  b = Mul (v0, s)",
        "m = ReduceSum (v0, plane)  b = Sub (v0, m)",
    ],
)
def test_what_stands_between_convolutions_takes_their_order(text: str) -> None:
    assert left(between(text))["Transpose"] == 2
    pooled = "q = Relu (c1)  n = Transpose <perm = [0, 2, 3, 1]> (q)  y = ReduceMean <axes = [1, 2], keepdims = 0> (n)"
    assert left(between(text, pooled))["Transpose"] == 1  # of the input
    squeezed = pooled.replace("y = ReduceMean <axes = [1, 2], keepdims = 0> (n)", "o = ReduceMax <axes = [1, 2]> (n)")
    assert left(between(text, f"{squeezed}  y = Squeeze (o, plane)"))["Transpose"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "a = Add (v0, five)  b = Squeeze (a, zero)",
        "s = Shape (v0)  r = Reshape (v0, s)  b = Relu (r)",
        "m = ReduceMean <axes = [1], keepdims = 0> (v0)  a = Unsqueeze (m, one_axis)  b = Add (a, v0)",
        "b = CumSum (v0, axis)",
    ],
)
def test_what_would_not_have_fewer_stays(text: str) -> None:
    model = model_from_text(between(text), WEIGHTS)
    assert left(between(text))["Transpose"] == sum(node.op_type == "Transpose" for node in model.graph)


def test_readers_of_the_old_order_find_it_under_the_old_name() -> None:
    text = between("n = Neg (v0)  b = Relu (n)  z = CumSum (b, axis)").replace(
        "(float y)", "(float y, float b, float z)"
    )
    assert left(text) == {"Transpose": 3, "Conv": 2, "Neg": 1, "Relu": 1, "CumSum": 1}
    model = ChannelsFirst()(model_from_text(text, WEIGHTS)).model
    assert {node.name for node in model.graph if node.op_type == "Relu"} == {"b"}  # --exclude b still finds it


def test_attention_keeps_its_transposes() -> None:
    text = """net (float[N, 4, 8, 8] x) => (float y) {
        q = Transpose <perm = [0, 2, 1, 3]> (x)  k = Transpose <perm = [0, 2, 3, 1]> (x)
        s = Mul (k, one)  p = MatMul (q, s)  y = Transpose <perm = [0, 3, 1, 2]> (p) }"""
    model = model_from_text(text, {"one": np.float32(0.5)})
    assert not ChannelsFirst()(model).modified


def test_a_network_as_tensorflow_has_it_ends_on_integers() -> None:
    model = model_from_text(
        between(
            "d = Sub (v0, mean)  m = Mul (d, scale)  o = Add (m, offset)  b = Relu (o)",
            """v1 = Transpose <perm = [0, 2, 3, 1]> (c1)  d1 = Sub (v1, mean)  m1 = Mul (d1, scale)
            o1 = Add (m1, offset)  s1 = Add (o1, b)  b1 = Relu (s1)
            f2 = Transpose <perm = [0, 3, 1, 2]> (b1)  c2 = Conv <pads = [1, 1, 1, 1]> (f2, w2)
            v2 = Transpose <perm = [0, 2, 3, 1]> (c2)  y = ReduceMean <axes = [1, 2], keepdims = 0> (v2)""",
        ),
        WEIGHTS,
    )
    data = feeds(16, 8, 8, 4)
    prepared, _ = prepare(model, data[0])
    assert Counter(node.op_type for node in prepared.graph) == {
        "Transpose": 1, "Conv": 3, "Relu": 2, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1
    }  # fmt: skip
    result = quantize(model, data, Recipe(weights=Weights(Rtn(), split="never")))
    kernels = result.report.proof.kernels
    assert (kernels.num_linear, kernels.islands) == (3, {})
    assert result.report.proof.comparison.sqnr_db > 25
    found = open_session(result.delivery.data).run(None, data[0])[0]  # type: ignore[arg-type]
    assert found.shape == (1, 4)
