"""Bias absorption: the same function above the constants, and less error where channels are always on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.passes.absorb_bias import AbsorbBias, can_absorb
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.equalize import channel_pairs
from ptq.passes.linear import constant
from tests.builders import feeds, model_from_text, random

BETWEEN = {
    "Relu": "b = Relu (a)",
    "LeakyRelu": "b = LeakyRelu <alpha = 0.1> (a)",
    "PRelu": "b = PRelu (a, slope)",
    "Clip": "b = Clip (a, zero, most)",
    "MaxPool": "r = Relu (a)\nb = MaxPool <kernel_shape = [2, 2]> (r)",
}


def net(between: str = "Relu", offset: float = 20.0, *, second: str = "group = 1", bias: bool = True) -> ir.Model:
    """Two convolutions; the first and the fifth of the 8 channels between them stay near `offset`."""
    text = f"""
    net (float[1, 8, 8, 8] x) => (float[1, 8, H, W] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
        {BETWEEN[between]}
        y = Conv <{second}> (b, w1{", b1" if bias else ""})
    }}"""
    weights = {"w0": random((8, 8, 3, 3), 1, 0.05), "b0": random((8,), 2), "b1": random((8,), 4)}
    weights["b0"][[0, 4]] += offset
    weights["w1"] = random((8, 8 // (int(second[-1]) if second.startswith("group") else 1), 3, 3), 3)
    if second == "group = 1":
        weights["b1"] -= offset * weights["w1"][:, [0, 4]].sum((1, 2, 3))  # outputs near 0
    weights["slope"] = np.full((8, 1, 1), 0.25, np.float32)
    return model_from_text(text, weights | {"zero": np.float32(0), "most": np.float32(100)})


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("second", ["group = 1", "group = 2", "group = 8"])
@pytest.mark.parametrize("bias", [True, False])
@given(seed=st.integers(0, 1000))
@settings(max_examples=3)
def test_constants_between_convolutions_change_nothing(between: str, second: str, seed: int, *, bias: bool) -> None:
    model, feed = net(between, second=second, bias=bias), feeds(1, 8, 8, 8, seed=seed)[0]
    (pair,) = channel_pairs(model)
    assert can_absorb(pair)
    shift = np.array([15.0, 0, 0, 0, 12.0, 0, 0, 0])
    changed = model.clone()
    AbsorbBias({str(pair.value.name): shift})(changed)
    require_same("AbsorbBias", float_outputs(model, feed, ()), float_outputs(changed, feed, ()))
    before, after = (np.asarray(constant(each.graph[0].inputs[2])) for each in (model, changed))
    np.testing.assert_allclose(before - after, shift, atol=1e-5)


@pytest.mark.parametrize("second", ["pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"'])
def test_a_border_of_zeros_would_have_to_move_too(second: str) -> None:
    (pair,) = channel_pairs(net(second=second))
    assert not can_absorb(pair)


def measured(model: ir.Model, *, equalize: bool) -> tuple[float, tuple[str, ...]]:
    samples = feeds(24, 8, 8, 8)
    report = quantize(model, samples[:16], Recipe(equalize=equalize), evaluation=samples[16:]).report
    return report.proof.comparison.sqnr_db, report.notes


def test_channels_that_are_always_on_cost_less() -> None:
    (without, _), (absorbed, notes) = (measured(net(), equalize=each) for each in (False, True))
    assert absorbed > without + 5
    assert any("channels of 1 values that are always on" in note for note in notes)


def test_channels_that_are_sometimes_off_are_left_alone() -> None:
    (without, _), (same, notes) = (measured(net(offset=0.0), equalize=each) for each in (False, True))
    assert same > without - 0.5
    assert not any("always on" in note for note in notes)
