"""Neighbouring weights that share the room of 16-bit sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.calibration.observers import Auto, Dynamic, Observer
from ptq.core.saturation import SaturationLimits, overflows
from ptq.core.spec import INT8_WEIGHT, PerAxis, PerTensor
from ptq.recipe import Weights
from ptq.weights import Gptq, Rtn, WeightMethod
from tests.builders import Arrays, feeds, model_from_text, random
from tests.unit.test_balancing import sqnr_db

ROWWISE = replace(INT8_WEIGHT, granularity=PerAxis(0))
ENDS = np.asarray(-127.0), np.asarray(127.0)


def slow_overflow(codes: np.ndarray, order: np.ndarray) -> bool:
    """As a processor does it: two products of a byte each, in 16 bits."""
    for row in codes[:, order].astype(int):
        for first in range(0, len(row) - 1, 2):
            for inputs in ((255, 255), (255, 0), (0, 255)):
                total = inputs[0] * row[first] + inputs[1] * row[first + 1]
                if not -(2**15) <= total < 2**15:
                    return True
    return False


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_any_levels_within_the_limits_fit(seed: int, inputs: int, features: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(2, (features, inputs)).astype(np.float32)
    order, spec = rng.permutation(inputs), replace(INT8_WEIGHT, granularity=PerTensor()) if shared else ROWWISE
    limits = SaturationLimits.of(weight, order, spec, ENDS)
    assert (limits.low <= 0).all()
    assert (limits.high >= 0).all()
    corners = [np.where(rng.random(weight.shape) < 0.5, limits.low, limits.high) for _ in range(8)]
    for levels in (limits.low, limits.high, *corners):
        assert not slow_overflow(levels, order)
        assert not overflows(levels.astype(np.int8), order)
    reach = np.abs(weight).max(None if shared else 1)
    assert (limits.scale >= reach / 127 * 0.999).all()
    assert (limits.scale <= reach / 127 * 2.001).all()


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_overflow_is_told_as_the_processor_sees_it(seed: int, inputs: int) -> None:
    rng = np.random.default_rng(seed)
    codes, order = rng.integers(-127, 128, (2, inputs)).astype(np.int8), rng.permutation(inputs)
    assert overflows(codes, order) == slow_overflow(codes, order)


@pytest.mark.parametrize("columns", [1, 64, 577])
def test_costs_far_less_than_a_bit(columns: int) -> None:
    weight = np.random.default_rng(columns).standard_normal((64, columns)).astype(np.float32)
    limits = SaturationLimits.of(weight, np.arange(columns), ROWWISE, ENDS)
    levels = weight / limits.scale[:, None]
    error = np.square((np.clip(np.rint(levels), limits.low, limits.high) - levels) * limits.scale[:, None]).sum()
    step = np.abs(weight).max(1, keepdims=True) / 127
    whole = np.square(np.rint(weight / step) * step - weight).sum()
    assert columns == 1 or 10 * np.log10(error / whole) < 2.5, "a bit is 6 dB"


CASES = {
    "Conv": ("y = Conv (x, w)", (6, 8, 8), {"w": (10, 6, 3, 3)}),
    "of an odd number of channels": ("y = Conv (x, w)", (5, 8, 8), {"w": (10, 5, 3, 3)}),
    "in groups": ("y = Conv <group = 2> (x, w)", (64, 8, 8), {"w": (10, 32, 3, 3)}),
    "depthwise": ("y = Conv <group = 10> (x, w)", (10, 8, 8), {"w": (10, 1, 3, 3)}),
    "of sequences": ("y = Conv (x, w)", (5, 12), {"w": (10, 5, 3)}),
    "of sequences, depthwise": ("y = Conv <group = 10> (x, w)", (10, 12), {"w": (10, 1, 3)}),
    "of volumes": ("y = Conv (x, w)", (5, 4, 4, 4), {"w": (10, 5, 3, 3, 3)}),
    "two features per channel": ("y = Conv <group = 5> (x, w)", (5, 8, 8), {"w": (10, 1, 3, 3)}),
    "Gemm": ("f = Flatten (x) y = Gemm (f, w)", (96,), {"w": (96, 10)}),
    "Gemm, turned": ("f = Flatten (x) y = Gemm <transB = 1> (f, w)", (96,), {"w": (10, 96)}),
    "MatMul": ("y = MatMul (x, w)", (3, 97), {"w": (97, 10)}),
}


RUNS = [(case, Auto(), method) for case in CASES for method in (Rtn(), Gptq())]
RUNS += [(case, Dynamic(), Rtn()) for case in ("Gemm", "Gemm, turned", "MatMul")]  # convolutions stay in float


@pytest.mark.parametrize(("case", "activations", "method"), RUNS, ids=str)
def test_layers_of_wide_weights_are_right_on_any_processor(
    case: str, activations: Observer, method: WeightMethod
) -> None:
    """All weights of a feature large and of one sign, all inputs large: the worst there is."""
    text, extents, shapes = CASES[case]
    signs = np.where(np.arange(10) % 3, 1, -1).astype(np.float32)
    weights: Arrays = {}
    for name, shape in shapes.items():
        axis = shape.index(10) if shape[0] != 10 else 0
        wide = np.float32(0.5) + random(shape, 3, 0.05)
        weights[name] = wide * signs.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    shape = ", ".join(["N", *map(str, extents)])
    output = ", ".join("abcde"[: 1 + len(extents)])
    model = model_from_text(f"m (float[{shape}] x) => (float[{output}] y) {{ {text} }}", weights)
    data = [{"x": np.abs(feed["x"]) / 4 + np.float32(2)} for feed in feeds(16, *extents)]
    recipe = Recipe(target="portable", activations=activations, weights=Weights(method))
    result = quantize(model, data, recipe)
    assert sqnr_db(result, model, data) > 34
