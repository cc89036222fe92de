"""Zeros around images: which go into the convolutions behind them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ptq.passes.check_equivalence import float_outputs
from ptq.passes.fold_pads import FoldPads
from tests.builders import model_from_text, random

WEIGHTS = {
    "w": random((4, 3, 3, 3), 1), "corner": np.array([0, 0, 0, 0, 0, 0, 1, 2]), "zero": np.float32(0),
    "around": np.array([0, 0, 1, 2, 0, 0, 1, 0]), "less": np.array([0, 0, -1, 0, 0, 0, 0, 0]), "one": np.float32(1),
    "channels": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "v": random((4, 4, 3, 3), 2), "two": np.array([2, 3]),
    "narrow": np.array([1, 1, 1, 1]),
}  # fmt: skip


def left(text: str) -> Counter[str]:
    """Operators after folding, whose outputs are as before."""
    model = model_from_text(f"net (float[N, 3, 7, 8] x) => (float y) {{ {text} }}", WEIGHTS, opset=18)
    model.graph.outputs[0].shape = None
    feed = {"x": random((2, 3, 7, 8), 9)}
    before, after = float_outputs(model, feed), FoldPads()(model.clone()).model
    np.testing.assert_allclose(float_outputs(after, feed)["y"], before["y"], rtol=1e-5, atol=1e-5)
    return Counter(node.op_type for node in after.graph)


@pytest.mark.parametrize(
    "text",
    [
        "p = Pad (x, corner)  y = Conv <strides = [2, 2]> (p, w)",
        "p = Pad (x, around, zero)  y = Conv <pads = [1, 0, 0, 1]> (p, w)",
        'p = Pad (x, corner)  y = Conv <auto_pad = "VALID"> (p, w)',
        "p = Pad (x, corner)  q = Pad (p, around)  y = Conv (q, w)",
    ],
)
def test_zeros_go_into_the_convolution(text: str) -> None:
    assert left(text) == {"Conv": 1}


def test_every_reader_takes_them() -> None:
    assert left("p = Pad (x, corner)  a = Conv (p, w)  b = Conv (p, w)  y = Add (a, b)") == {"Conv": 2, "Add": 1}


@pytest.mark.parametrize(
    "text",
    [
        "p = Pad (x, corner, one)  y = Conv (p, w)",
        "p = Pad (x, less)  y = Conv (p, w)",
        "p = Pad (x, channels)  y = Conv (p, v)",
        'p = Pad <mode = "reflect"> (x, corner)  y = Conv (p, w)',
        'p = Pad (x, narrow, "", two)  y = Conv (p, w)',
        'p = Pad (x, corner)  y = Conv <auto_pad = "SAME_UPPER"> (p, w)',
        "p = Pad (x, corner)  y = MaxPool <kernel_shape = [2, 2]> (p)",
        "p = Pad (x, corner)  a = Conv (p, w)  m = ReduceMean (p)  y = Add (a, m)",
    ],
)
def test_what_convolutions_cannot_pad_stays(text: str) -> None:
    assert left(text)["Pad"] == 1
