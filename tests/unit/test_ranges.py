"""A range is searched for once for the same numbers, and anew for others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ptq.calibration.observers import Mse, Percentile
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram
from ptq.solving import ranges
from tests.builders import random

UINT8_ACTIVATION = QuantSpec()


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Histogram]:
    """Histograms that were searched, none of them known before."""
    found: list[Histogram] = []
    choose = Mse.choose_range
    monkeypatch.setattr(Mse, "choose_range", lambda self, seen, spec: (found.append(seen), choose(self, seen, spec))[1])
    monkeypatch.setattr(ranges, "_known", type(ranges._known)())
    return found


def test_equal_statistics_are_searched_once(searches: list[Histogram]) -> None:
    values = random((300,))
    first, again = (ranges.range_of(Mse(), Histogram.of(values), UINT8_ACTIVATION) for _ in range(2))
    assert first is again
    assert len(searches) == 1
    assert ranges.range_of(Percentile(80.0), Histogram.of(values), UINT8_ACTIVATION).rmax < first.rmax


def test_other_statistics_grids_and_settings_are_searched_anew(searches: list[Histogram]) -> None:
    values = random((300,))
    for numbers in (values, values[:-1], values * 2, -values):
        for bits in (8, 4):
            spec = replace(UINT8_ACTIVATION, num_bits=bits)
            found = ranges.range_of(Mse(), Histogram.of(numbers), spec)
            twin = Mse().choose_range(searches.pop(), spec)
            assert (found.rmin, found.rmax) == (twin.rmin, twin.rmax)
            searches.clear()
    tails = [ranges.range_of(Percentile(share), Histogram.of(values), UINT8_ACTIVATION) for share in (99.0, 90.0)]
    assert tails[0].rmax > tails[1].rmax


def test_only_the_latest_are_remembered(searches: list[Histogram], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "KNOWN", 2)
    histograms = [Histogram.of(random((30,), seed)) for seed in range(3)]
    for index in (0, 1, 0, 2, 0, 1):
        ranges.range_of(Mse(), histograms[index], UINT8_ACTIVATION)
    assert [id(seen) for seen in searches] == [id(histograms[index]) for index in (0, 1, 2, 1)]
    assert len(ranges._known) == 2
