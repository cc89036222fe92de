"""Mean rows of samples judge a damping as the moments of those rows do."""

from __future__ import annotations

import numpy as np
import pytest

from ptq.core.layer_statistics import LayerStatistics
from ptq.core.sample_means import MOST, MeansKept, SampleMeans
from tests.builders import random


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("central", [False, True])
def test_they_tell_the_error_that_their_moments_tell(groups: int, central: bool) -> None:
    given, original, weight = random((groups, 40, 6), 1), random((groups, 40, 6), 2), random((groups * 4, 6), 3)
    quantized = (weight + 0.3 * random(weight.shape, 4)).astype(np.float64).reshape(groups, 4, 6)
    means, moments = SampleMeans(given, original), LayerStatistics.of(given.astype(float), weight, original)
    if central:
        means, moments = means.centered(weight), moments.centered(weight)
    assert means.judge(weight)(quantized) == pytest.approx(moments.judge(weight)(quantized), rel=1e-5)


@pytest.mark.parametrize("total", [1, MOST, MOST + 1, 5 * MOST + 3])
@pytest.mark.parametrize("size", [1, 16, 700])
def test_however_many_samples_there_are_few_are_kept_and_evenly_spread(total: int, size: int) -> None:
    rows, kept = np.arange(total, dtype=np.float32)[None, :, None], MeansKept()
    for start in range(0, total, size):
        part = rows[:, start : start + size]
        kept.add(SampleMeans(part, -part))
    found = kept.value()
    steps = np.unique(np.diff(found.given[0, :, 0]))
    assert min(total, MOST // 2) <= found.given.shape[1] <= MOST
    assert len(steps) == (total > 1)
    assert found.given[0, 0, 0] == 0
    np.testing.assert_array_equal(found.original, -found.given)
