"""The closed-form error of a histogram against rounding every value."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.core.affine import Range, choose_qparams, fake_quantize
from ptq.core.distortion import expected_error
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1, 2.0])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu"])
def test_expected_error_is_the_measured_one(bits: int, ratio: float, kind: str) -> None:
    rng = np.random.default_rng(1)
    draw = {"normal": rng.standard_normal, "laplace": rng.laplace, "relu": rng.standard_normal}[kind]
    values = draw(size=300_000).astype(np.float32)
    values = np.maximum(values, 0) if kind == "relu" else values
    histogram = Histogram.of(values)
    params = choose_qparams(Range.of(histogram.rmin * ratio, histogram.rmax * ratio), QuantSpec(num_bits=bits))
    measured = np.square(fake_quantize(values, params) - values.astype(np.float64)).mean()
    # A bin is 0.4 % wide (3 % far below the largest value) and its density is taken as flat: one percent of error.
    assert float(expected_error(histogram, params)) == pytest.approx(measured, rel=0.01)


def test_exact_values_have_exact_error() -> None:
    values = np.array([0.0] * 10 + [1.0] * 10, np.float32)
    params = choose_qparams(Range.of(0.0, 1.0), QuantSpec())
    assert float(expected_error(Histogram.of(values), params)) < 1e-9
