"""What every weight method has to do, run for each member of the family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptq.core.problem import LayerProblem
from ptq.core.spec import INT8_WEIGHT, Granularity, PerAxis, PerBlock, PerTensor
from ptq.recipe import members, tag_of
from ptq.weights import Rtn, WeightMethod

MEMBERS = [pytest.param(member(), id=tag_of(member)) for member in members(WeightMethod)] + [
    pytest.param(Rtn("mse"), id="rtn-mse")
]
GRANULARITIES = [
    pytest.param(PerTensor(), id="tensor"),
    pytest.param(PerAxis(0), id="axis"),
    pytest.param(PerBlock(1, 16), id="block"),
]
each_method = pytest.mark.parametrize("method", MEMBERS)
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def problem(weight: np.ndarray, granularity: Granularity, bits: int = 8) -> LayerProblem:
    return LayerProblem("layer", weight, replace(INT8_WEIGHT, num_bits=bits, granularity=granularity))


def heavy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (12, 40)).astype(np.float32)


@each_method
@each_granularity
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_stay_in_range_and_decode_to_the_weight(
    method: WeightMethod, granularity: Granularity, bits: int
) -> None:
    weight = heavy()
    kept = weight.copy()
    encoding = method.quantize(problem(weight, granularity, bits))
    spec = encoding.params.spec
    assert encoding.codes.dtype == spec.storage_dtype
    assert encoding.codes.min() >= spec.qmin
    assert encoding.codes.max() <= spec.qmax
    decoded = encoding.decode()
    assert decoded.shape == weight.shape
    assert np.square(decoded - weight).sum() < np.square(weight).sum()
    np.testing.assert_array_equal(weight, kept)
    assert encoding.size_in_bits() == weight.size * bits + encoding.params.scale.size * 32


@each_method
@each_granularity
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-40])
def test_constant_weights_survive(method: WeightMethod, granularity: Granularity, value: float) -> None:
    weight = np.full((4, 32), value, np.float32)
    decoded = method.quantize(problem(weight, granularity)).decode()
    np.testing.assert_allclose(decoded, weight, rtol=1e-5, atol=1e-37)


@each_method
def test_same_problem_same_bits(method: WeightMethod) -> None:
    a, b = (method.quantize(problem(heavy(), PerAxis(0))) for _ in range(2))
    assert a.codes.tobytes() == b.codes.tobytes()
    assert a.params.scale.tobytes() == b.params.scale.tobytes()


@each_method
def test_rows_are_independent(method: WeightMethod) -> None:
    weight = heavy()
    order = np.random.default_rng(1).permutation(len(weight))
    plain = method.quantize(problem(weight, PerAxis(0))).codes
    np.testing.assert_array_equal(method.quantize(problem(weight[order], PerAxis(0))).codes, plain[order])


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_mse_clip_is_never_worse_than_absmax(bits: int) -> None:
    weight = heavy()
    errors = [
        np.square(Rtn(clip).quantize(problem(weight, PerAxis(0), bits)).decode() - weight).sum(1)
        for clip in ("absmax", "mse")
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert errors[1].sum() < errors[0].sum() or bits == 8
