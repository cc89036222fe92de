"""The KL search against a brute force that does what the definition says, loop by loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ptq.calibration.observers import Kl, MinMax
from ptq.calibration.observers.kl import FLOOR, best_cut, divergences
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram


def brute_force(counts: list[float], cut: int, num_levels: int, variant: str) -> float:
    """Divergence of one cut, straight from the definition."""
    tail = sum(counts[cut:])
    clipped = list(counts[:cut])
    clipped[-1] += tail
    edges = [math.floor(k * cut / num_levels + 0.5) for k in range(num_levels + 1)]
    merged = [0.0] * cut
    for start, stop in itertools.pairwise(edges):
        occupied = [i for i in range(start, stop) if clipped[i] > 0]
        mass = sum(counts[start:stop])
        for i in occupied:
            merged[i] = max(mass / len(occupied), FLOOR)
    total, kept = sum(clipped), sum(counts[:cut])
    result = 0.0
    for p, q in zip(clipped, merged, strict=True):
        if p > 0:
            ratio = (p * total) / (q * kept) if variant == "cfws" else (p / total) / (q / kept)
            result += p / total * math.log(ratio)
    return result


def random_histogram(seed: int) -> tuple[list[float], int]:
    rng = np.random.default_rng(seed)
    bins, levels = int(rng.integers(12, 48)), int(rng.integers(4, 10))
    shape = rng.exponential(1.0, bins) * np.exp(-np.arange(bins) / rng.uniform(1, 30))
    counts = rng.poisson(shape * rng.uniform(1, 200)).astype(float)
    counts[rng.random(bins) < 0.2] = 0.0
    counts[0] += 1.0
    return counts.tolist(), levels


@pytest.mark.parametrize("variant", ["standard", "cfws"])
def test_best_cut_is_the_brute_force_optimum_on_1000_histograms(variant: str) -> None:
    for seed in range(1000):
        counts, levels = random_histogram(seed)
        cuts = range(levels, len(counts) + 1)
        expected = [brute_force(counts, cut, levels, variant) for cut in cuts]
        found = divergences(np.array(counts), levels, np.array(cuts), variant)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        cut = best_cut(np.array(counts), levels, variant)  # type: ignore[arg-type]
        assert expected[cut - levels] <= min(expected) + 1e-9


def test_worked_example() -> None:
    counts = np.array([1, 0, 2, 3, 5, 3, 1, 7], float)
    standard = divergences(counts, 2, np.array([8]))
    assert standard == pytest.approx([0.150315], abs=1e-6)


def test_clipping_penalty_is_twice_the_log_of_the_kept_share() -> None:
    counts = np.array([1, 0, 2, 3, 5, 3, 1, 7], float)
    cuts = np.array([6, 7, 8])
    difference = divergences(counts, 2, cuts, "cfws") - divergences(counts, 2, cuts)
    np.testing.assert_allclose(difference, 2 * np.log(22 / np.array([14, 15, 22])), rtol=1e-12)


def test_kl_differs_from_minmax_where_tails_are_heavy_and_not_where_there_are_none() -> None:
    rng = np.random.default_rng(0)
    outliers = np.concatenate([rng.standard_normal(200_000), [35, 40, 50]]).astype(np.float32)
    assert float(Kl().choose_range(Histogram.of(np.abs(outliers)), QuantSpec()).rmax) < 10
    uniform = Histogram.of(rng.uniform(0, 1, 200_000).astype(np.float32))
    whole = float(MinMax().choose_range(uniform, QuantSpec()).rmax)
    assert float(Kl().choose_range(uniform, QuantSpec()).rmax) >= 0.99 * whole
