"""Statistics are mergeable values: any order, any split, the same bytes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq.calibration.collect import StatisticsCollector, contribution_of
from ptq.calibration.statistics import ExtremesOf, HistogramOf, MeanOf
from ptq.core.archive import freeze
from ptq.core.channel_extremes import HalvedExtremes
from ptq.core.channel_mean import ChannelMean
from ptq.core.errors import CalibrationError
from ptq.core.statistics import Histogram, HistogramAccumulator

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(1, 200), elements=finite)


def as_bytes(histogram: Histogram) -> bytes:
    return histogram.bins.tobytes() + histogram.counts.tobytes() + np.array([histogram.rmin, histogram.rmax]).tobytes()


@given(st.lists(arrays, min_size=1, max_size=5), st.randoms())
def test_any_order_and_split_gives_the_same_histogram(parts: list[np.ndarray], random: object) -> None:
    whole = Histogram.of(np.concatenate(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    accumulator = HistogramAccumulator()
    merged = Histogram.of(shuffled[0])
    accumulator.update(shuffled[0])
    for part in shuffled[1:]:
        merged = merged.merge(Histogram.of(part))
        accumulator.update(part)
    assert as_bytes(merged) == as_bytes(whole)
    assert as_bytes(accumulator.value()) == as_bytes(whole)


@given(arrays)
def test_every_value_is_counted_in_the_bin_that_holds_it(values: np.ndarray) -> None:
    histogram = Histogram.of(values)
    assert histogram.total == len(values)
    assert histogram.rmin == values.min()
    assert histogram.rmax == values.max()
    for density in (histogram.pieces, histogram.density):
        assert density.counts.sum() == len(values)
        assert (density.lower <= density.upper).all()
        assert (density.upper[:-1] <= density.lower[1:]).all()
    normal = values[np.abs(values) >= np.finfo(np.float32).tiny].astype(np.float64)
    pieces = histogram.pieces
    for value in normal:
        assert ((pieces.lower <= value) & (value <= pieces.upper)).any()


@given(arrays)
def test_linear_bins_keep_the_mass(values: np.ndarray) -> None:
    histogram = Histogram.of(values)
    if max(-histogram.rmin, histogram.rmax) > np.finfo(np.float32).tiny:
        linear = histogram.linear(64)
        assert linear.min() >= -1e-9
        assert linear.sum() == pytest.approx(histogram.total - histogram.zeros, abs=1e-6)


def test_quantiles_are_within_a_bin_of_the_exact_ones() -> None:
    values = np.random.default_rng(0).standard_t(3, 100_000).astype(np.float32)
    histogram = Histogram.of(values)
    for mass in (0.001, 0.1, 0.5, 0.9, 0.999, 0.99999):
        assert histogram.quantile(mass) == pytest.approx(np.quantile(values, mass), rel=5e-3, abs=1e-4)


@given(
    st.lists(hnp.arrays(np.float32, (3, 4), elements=finite.map(lambda v: np.float32(v) / 8)), min_size=1, max_size=8)
)
def test_channel_means_are_exact_in_any_order(samples: list[np.ndarray]) -> None:
    def total(items: list[np.ndarray]) -> ChannelMean:
        result = ChannelMean.of(items[0], 0)
        for item in items[1:]:
            result = result.merge(ChannelMean.of(item, 0))
        return result

    forward, backward = total(samples), total(samples[::-1])
    assert forward.table.tobytes() == backward.table.tobytes()
    expected = np.mean(
        [item.mean(1, dtype=np.float64).astype(np.float32) for item in samples], axis=0, dtype=np.float64
    )
    scale = float(np.max(np.abs(samples)))
    np.testing.assert_allclose(forward.mean, expected, rtol=1e-6, atol=scale * 1e-6)


@given(st.permutations(range(6)))
def test_a_collector_does_not_care_about_order(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((1, 3, 4, 4)).astype(np.float32) for _ in range(6)]
    results = []
    for indices in (range(6), order):
        wanted = {"x": (HistogramOf(), MeanOf(1), ExtremesOf(1))}
        collector = StatisticsCollector(wanted)
        for index in indices:
            collector.update(contribution_of(wanted, [samples[index]], index))
        results.append(collector.value())
    assert as_bytes(results[0].histograms["x"]) == as_bytes(results[1].histograms["x"])
    assert results[0].means["x"].table.tobytes() == results[1].means["x"].table.tobytes()
    assert freeze(results[0].values["x"]["extremes"]) == freeze(results[1].values["x"]["extremes"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_activations_name_tensor_and_sample(bad: float) -> None:
    wanted = {"t": (HistogramOf(),)}
    contribution_of(wanted, [np.ones(3, np.float32)], 0)
    with pytest.raises(CalibrationError, match=r"'t'.*sample 1"):
        contribution_of(wanted, [np.array([1, bad], np.float32)], 1)


def test_nothing_seen_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no sample"):
        StatisticsCollector({"t": (HistogramOf(),)}).value()


@given(st.permutations(range(6)))
def test_zeros_of_either_sign_leave_no_trace_of_the_order(order: list[int]) -> None:
    samples = [np.float32([[0.0, -0.0, 1.0], [-0.0, 0.0, -0.0]]) * (-1) ** (index // 2) for index in range(6)]
    parts = [HalvedExtremes.of(sample, -1, index) for index, sample in enumerate(samples)]
    whole, other = (functools.reduce(HalvedExtremes.merge, each) for each in (parts, [parts[i] for i in order]))
    assert freeze(whole) == freeze(other)
