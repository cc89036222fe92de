"""What every observer has to do, run for each member of the family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.calibration.observers import Auto, MinMax, Observer
from ptq.core.affine import choose_qparams, fake_quantize
from ptq.core.distortion import range_error
from ptq.core.family import members
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram

MEMBERS = [pytest.param(member(), id=member.__module__.rsplit(".", 1)[-1]) for member in members(Observer)]
SPECS = [
    pytest.param(QuantSpec(), id="u8"),
    pytest.param(QuantSpec(signed=True), id="s8"),
    pytest.param(QuantSpec(signed=True, symmetric=True), id="s8-symmetric"),
    pytest.param(QuantSpec(num_bits=4), id="u4"),
]
each_observer = pytest.mark.parametrize("observer", MEMBERS)
each_spec = pytest.mark.parametrize("spec", SPECS)


def data(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal(20_000),
        "heavy": rng.standard_t(2, 20_000),
        "relu": np.maximum(rng.standard_normal(20_000), 0),
        "negative": -np.abs(rng.standard_normal(20_000)),
        "shifted": rng.standard_normal(20_000) + 100,
        "constant": np.full(100, 2.5),
        "zero": np.zeros(100),
        "tiny": rng.standard_normal(1000) * 1e-38,
        "huge": rng.standard_normal(1000) * 1e30,
        "one": np.array([-3.0]),
        "two values": np.array([0.0, 1.0] * 50),
    }
    return values[kind].astype(np.float32)


KINDS = ["normal", "heavy", "relu", "negative", "shifted", "constant", "zero", "tiny", "huge", "one", "two values"]


@each_observer
@each_spec
@pytest.mark.parametrize("kind", KINDS)
def test_range_contains_zero_and_stays_within_the_data(observer: Observer, spec: QuantSpec, kind: str) -> None:
    values = data(kind)
    limits = observer.choose_range(Histogram.of(values), spec)
    low, high = float(limits.rmin), float(limits.rmax)
    assert low <= 0 <= high
    reach = float(np.abs(values).max()) * 1.0001
    assert -reach <= low
    assert high <= reach
    params = choose_qparams(limits, spec)
    assert np.isfinite(fake_quantize(values, params)).all()


@each_observer
def test_more_of_the_same_data_changes_nothing(observer: Observer) -> None:
    once = Histogram.of(data("heavy"))
    a, b = (observer.choose_range(h, QuantSpec()) for h in (once, once.merge(once)))
    np.testing.assert_allclose([a.rmin, a.rmax], [b.rmin, b.rmax], rtol=1e-3)


@each_observer
@pytest.mark.parametrize("factor", [2.0**-6, 2.0**9])
def test_scaling_the_data_scales_the_range(observer: Observer, factor: float) -> None:
    values = data("heavy")
    a, b = (observer.choose_range(Histogram.of(v), QuantSpec()) for v in (values, values * np.float32(factor)))
    np.testing.assert_allclose([a.rmin * factor, a.rmax * factor], [b.rmin, b.rmax], rtol=1e-5)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "laplace", "student", "uniform", "relu"]),
    st.sampled_from([p.values[0] for p in SPECS]),
)
def test_auto_is_never_worse_than_minmax(seed: int, kind: str, spec: QuantSpec) -> None:
    rng = np.random.default_rng(seed)
    draw = {
        "normal": lambda: rng.standard_normal(2000),
        "laplace": lambda: rng.laplace(size=2000),
        "student": lambda: rng.standard_t(2, 2000),
        "uniform": lambda: rng.uniform(-1, 3, 2000),
        "relu": lambda: np.maximum(rng.standard_normal(2000), 0),
    }[kind]
    histogram = Histogram.of(draw().astype(np.float32))
    ours, minmax = (
        float(range_error(histogram, observer.choose_range(histogram, spec), spec)) for observer in (Auto(), MinMax())
    )
    assert ours <= minmax
