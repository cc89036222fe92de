"""The half-quadratic search against a loop over scales, and what it promises over rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.core.problem import LayerProblem
from ptq.core.spec import PerAxis, PerBlock, QuantSpec
from ptq.weights import Hqq, Rtn


def norms(method: Any, weight: Any, spec: QuantSpec) -> Any:
    error = method.quantize(LayerProblem("l", weight, spec)).decode() - weight
    return np.power(np.abs(error), 0.7).reshape(len(weight), -1).sum(1)


@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8]))
def test_no_row_has_a_larger_norm_than_rounding(seed: int, bits: int) -> None:
    weight = np.random.default_rng(seed).standard_t(3, (6, 40)).astype(np.float32)
    spec = QuantSpec(bits, signed=True, symmetric=True, granularity=PerAxis(0))
    assert (norms(Hqq(), weight, spec) <= norms(Rtn(), weight, spec) * (1 + 1e-6)).all()


def test_outliers_are_given_up_for_the_rest() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    weight[:, 5] *= 2.5
    spec = QuantSpec(4, signed=True, symmetric=True, granularity=PerAxis(0))
    fitted = Hqq().quantize(LayerProblem("l", weight, spec)).params.scale
    plain = Rtn().quantize(LayerProblem("l", weight, spec)).params.scale
    assert (fitted <= plain * 1.001).mean() > 0.5
    assert norms(Hqq(), weight, spec).sum() < 0.99 * norms(Rtn(), weight, spec).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_keep_their_own_scales(symmetric: bool) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)
    spec = QuantSpec(4, signed=True, symmetric=symmetric, granularity=PerBlock(1, 16))
    encoding = Hqq().quantize(LayerProblem("l", weight, spec))
    assert encoding.params.scale.shape == (4, 4)
    assert np.abs(encoding.decode() - weight).max() < 0.5
