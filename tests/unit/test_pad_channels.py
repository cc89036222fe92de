"""Channels of zeros around depthwise convolutions: which stretches are filled, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.passes import PadChannels
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.linear import constant
from tests.builders import Arrays, feeds, model_from_text, random

C = 20
WEIGHTS: Arrays = {
    "w": random((C, 3, 1, 1), 0), "b": random((C,), 1), "d": random((C, 1, 3, 3), 2), "e": random((C,), 3),
    "v": random((5, C, 1, 1), 4), "f": random((6, C, 1, 1), 5), "g": random((C, 6, 1, 1), 6),
    "h": random((C, 1, 3, 3), 7),
    "q": random((C, C, 1, 1), 8), "one": np.float32(1), "each": random((1, C, 1, 1), 9), "t": random((3, 1, 3, 3), 10),
    "zero": np.array([0]), "twenty": np.array([C]), "axis": np.array([1]),
}  # fmt: skip
DEPTHWISE = f"Conv <group = {C}, pads = [1, 1, 1, 1]>"


def model(body: str) -> ir.Model:
    text = f"net (float[N, 3, 8, 8] x) => (float[N, K, H, W] y) {{ {body.replace('DW', DEPTHWISE)} }}"
    return model_from_text(text, WEIGHTS)


def groups(body: str) -> list[int]:
    """Groups of the depthwise layers after filling, which changes no output."""
    (feed,) = feeds(1, 3, 8, 8)
    before, filled = model(body), model(body)
    PadChannels(16)(filled)
    require_same("PadChannels", float_outputs(before, feed), float_outputs(filled, feed))
    return [count for node in filled.graph if (count := node.attributes.get_int("group", 1)) > 1]


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv (x, w, b)  r = Relu (a)  c = DW (r, d, e)  s = HardSigmoid (c)  m = Mul (c, s)  y = Conv (m, v)",
        """a = Conv (x, w)  c = DW (a, d)  p = GlobalAveragePool (c)  f1 = Conv (p, f)  r = Relu (f1)  f2 = Conv (r, g)
           s = Sigmoid (f2)  m = Mul (c, s)  n = Add (m, one)  y = Conv (n, v)""",
        "a = Conv (x, w)  c = DW (a, d)  k = Conv (c, q)  n = Add (a, k)  y = Conv (n, v)",
        "a = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2]> (a)  c = DW (p, d)  y = Conv (c, v)",
    ],
    ids=["swish", "gate", "skip", "pool"],
)
def test_a_stretch_is_filled_as_a_whole(body: str) -> None:
    assert groups(body) == [32]


def test_two_layers_in_a_row() -> None:
    assert groups("a = Conv (x, w)  c = DW (a, d)  i = DW (c, h)  y = Conv (i, v)") == [32, 32]


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv (x, w)  y = DW (a, d)",  # an output of the model
        "c = Conv <group = 3> (x, t)  y = Relu (c)",  # an input of the model
        "a = Conv (x, w)  m = Mul (a, each)  c = DW (m, d)  y = Conv (c, v)",
        "a = Conv (x, w)  c = DW (a, d)  k = Softmax <axis = 1> (c)  y = Conv (k, v)",
        "a = Conv (x, w)  c = DW (a, d)  i = DW (c, d)  y = Conv (i, v)",  # a weight of two layers
        """a = Conv (x, w)  c = DW (a, d)  k = Concat <axis = 1> (a, c)  s = Slice (k, zero, twenty, axis)
           y = Conv (s, v)""",
    ],
    ids=["end", "start", "constant", "softmax", "shared", "concat"],
)
def test_other_stretches_stay(body: str) -> None:
    assert set(groups(body)) <= {C, 3}


@pytest.mark.parametrize(("target", "count"), [("cpu-x86", 32), ("portable", 32), ("cpu-arm", C), ("native", C)])
def test_targets_say_how_many_channels_a_kernel_takes(target: str, count: int) -> None:
    body = "a = Conv (x, w, b)  r = Relu (a)  c = DW (r, d, e)  s = Relu (c)  y = Conv (s, v)"
    result = quantize(model(body), feeds(40, 3, 8, 8), Recipe(target=target))
    assert result.report.proof.comparison.sqnr_db > 25
    weights = [constant(value) for value in result.delivery.model.graph.initializers.values()]
    assert max(len(array) for array in weights if array is not None and array.ndim == 4) == count
