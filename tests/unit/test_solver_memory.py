"""What a wide layer takes of memory while it is solved, counted in second moments of its input."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np

from ptq.calibration.sequential import FEW_INPUTS, _Common, _measure, _Moments
from ptq.core.damping import HeldMoments, LayerMoments
from ptq.core.layer import LinearLayer
from ptq.core.layer_statistics import LayerStatistics, MomentSum
from ptq.core.matrix import WeightLayout
from ptq.core.problem import LayerProblem
from ptq.core.sample_means import SampleMeans
from ptq.core.spec import INT8_WEIGHT
from ptq.core.unfold import Unfold
from ptq.weights.gptq import Gptq
from tests.builders import random

WIDTH = 512
MOMENT = 8 * WIDTH**2


def peak(call: Callable[[], object]) -> float:
    """Return the most memory that a call holds at once besides what was there before, in moments."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / MOMENT
    finally:
        tracemalloc.stop()


def statistics(seed: int = 0) -> tuple[LayerStatistics, np.ndarray]:
    rows, noise, weight = random((1, 700, WIDTH), seed), random((1, 700, WIDTH), seed + 1), random((16, WIDTH), 2)
    return LayerStatistics.of((rows + noise / 10).astype(float), weight, rows.astype(float)), weight


def test_a_sweep_holds_few_matrices() -> None:
    seen, weight = statistics()
    problem = LayerProblem("layer", weight, INT8_WEIGHT, seen)
    assert peak(lambda: Gptq(num_sweeps=1).quantize(problem)) < 3.6  # 5.3 with an inverse and its factor


def test_moments_are_centered_merged_and_damped_in_place() -> None:
    (first, weight), (second, _) = statistics(), statistics(5)
    means = SampleMeans(random((1, 9, WIDTH), 7), random((1, 9, WIDTH), 8))
    moments = LayerMoments((first, second), (means, means))

    def held() -> None:
        moments.center(weight)
        HeldMoments.of(moments.whole(), weight, 0.1, 0.1).damped()

    assert peak(held) < 0.5
    assert not moments.rows


def test_parts_of_a_moment_are_no_wider_than_they_were_multiplied() -> None:
    weight, rows = random((4, FEW_INPUTS), 1), random((2, 30, FEW_INPUTS), 2)
    values = (2, [rows], [rows + np.float32(0.1)])
    half, [(moments, means)] = _measure(_Common(None, ((Unfold(), weight),)), (1, [values, values]))
    assert (half, moments.gram.dtype, type(means)) == (1, np.float32, SampleMeans)
    assert moments.count == 4 * 30
    assert means.given.shape == (1, 4, FEW_INPUTS)
    total = MomentSum()
    total.add(moments)
    assert total.value().gram.dtype == np.float64


def test_the_last_layer_that_reads_a_value_has_its_moments_and_others_copies() -> None:
    layers = [LinearLayer(n, "MatMul", "x", n, None, WeightLayout(1, (3, 2)), Unfold()) for n in ("a", "b")]
    shared, weight = _Moments(layers, random((4, 3), 3)), random((4, 3), 3)
    for half in (0, 1):
        rows = random((1, 8, 3), half)
        shared.add(half, (LayerStatistics.of(rows, weight, rows + 1), LayerStatistics.of(rows, weight, rows + 1)))
    first, second = (shared.of(layer) for layer in layers)
    for own, other in zip((*first.rows, *first.pooled), (*second.rows, *second.pooled), strict=True):
        np.testing.assert_array_equal(own.gram, other.gram)
        assert not np.shares_memory(own.gram, other.gram)
    assert not shared.rows
