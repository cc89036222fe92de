"""Weights as sums against the authors' own recursions, and against plain arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ptq.core.encoding import IntegerWeight
from ptq.core.problem import LayerProblem
from ptq.core.spec import INT8_WEIGHT, PerAxis, QuantSpec
from ptq.core.widths import Widths
from ptq.passes.split_center import coarse_and_fine
from ptq.weights import Rtn

Float = NDArray[np.float64]


def nearest(row: Float, step: float, bits: int) -> Float:
    """Points on the symmetric grid -1 .. 1 of 2^b - 1 levels, times `step`."""
    levels = (1 << (bits - 1)) - 1
    return np.clip(np.rint(row / step * levels), -levels, levels) / levels


def greedy(row: Float, bits: int, num_points: int, candidates: int = 400) -> tuple[list[float], list[Float]]:
    """Algorithm 1 of the multipoint paper: the best point for what is left over, its factor by least squares."""
    rest, factors, points = row.copy(), [], []
    for _ in range(num_points):
        best = (float(rest @ rest), 0.0, np.zeros_like(rest))
        for step in np.linspace(0, np.abs(rest).max(), candidates + 1)[1:]:
            point = nearest(rest, step, bits)
            if point @ point > 0 and (factor := float(rest @ point / (point @ point))) > 0:
                left = rest - factor * point
                best = min(best, (float(left @ left), factor, point), key=lambda each: each[0])
        factors.append(best[1])
        points.append(best[2])
        rest = rest - best[1] * best[2]
    return factors, points


def chain(row: Float, bits: int, num_points: int) -> list[Float]:
    """Points whose grids span exactly what the points before left over."""
    rest, points = row.copy(), []
    for _ in range(num_points):
        reach = float(np.abs(rest).max())
        point = nearest(rest, reach, bits) * reach if reach else np.zeros_like(rest)
        points.append(point)
        rest = rest - point
    return points


def sums(weight: Float, bits: int, num_points: int) -> IntegerWeight:
    spec = QuantSpec(bits, signed=True, symmetric=True, granularity=PerAxis(0))
    widths = Widths.in_rows(np.full(len(weight), min(bits * num_points, 8), np.int8), weight.shape[1])
    found = Rtn("mse").quantize(LayerProblem("layer", weight.astype(np.float32), spec, widths=widths))
    assert isinstance(found, IntegerWeight)
    return found


def test_greedy_points_of_the_paper() -> None:
    row = np.array([0.9, -0.35, 0.1, 0.62])
    factors, points = greedy(row, 2, 3)
    np.testing.assert_allclose(factors, [0.62333, 0.275, 0.1], atol=1e-4)
    assert [point.tolist() for point in points] == [[1, -1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
    left = [row - sum(f * p for f, p in zip(factors[:n], points[:n], strict=True)) for n in range(4)]
    np.testing.assert_allclose([np.linalg.norm(r) for r in left], [1.151911, 0.401580, 0.100083, 0.004082], atol=1e-5)
    factors, points = greedy(row, 4, 2)
    np.testing.assert_allclose(factors, [0.87917, 0.02575], atol=1e-3)
    assert (points[0] * 7).round().tolist() == [7, -3, 1, 5]


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_chain_obeys_its_bound(bits: int) -> None:
    shrink = 1 / ((1 << (bits - 1)) - 1) / 2
    for seed in range(50):
        row = np.random.default_rng(seed).standard_normal(64)
        for count in range(1, 5):
            left = row - sum(chain(row, bits, count))
            assert np.abs(left).max() <= shrink**count * np.abs(row).max() * (1 + 1e-9)


@pytest.mark.parametrize(("bits", "count"), [(4, 2), (3, 2), (2, 2), (2, 3), (2, 4)])
def test_sums_err_less_than_greedy_points_and_chains(bits: int, count: int) -> None:
    """The price of free factors is that points overlap; digits of one integer do not."""
    rows = np.random.default_rng(bits + count).standard_normal((8, 256))
    ours = np.linalg.norm(sums(rows, bits, count).decode() - rows, axis=1)
    for row, error in zip(rows, ours, strict=True):
        factors, points = greedy(row, bits, count, 100)
        paper = np.linalg.norm(row - sum(f * p for f, p in zip(factors, points, strict=True)))
        assert error <= min(paper, np.linalg.norm(row - sum(chain(row, bits, count))))


@pytest.mark.parametrize(("bits", "count"), [(bits, n) for bits in (2, 3, 4) for n in (1, 2, 3, 4)])
def test_every_sum_is_made_of_points(bits: int, count: int) -> None:
    """Digits: each within a point's word, each 2^b finer than the one before, the last with a constant of its own."""
    length = min(bits * count, 8)
    low, high = Widths.in_rows(np.array([length], np.int8), 1).limits()
    half, digits = 1 << (bits - 1), -(-length // bits)
    made = {
        sum((digit + (half if place < digits - 1 else 0)) << (bits * place) for place, digit in enumerate(each))
        for each in itertools.product(range(-half, half), repeat=digits)
    }
    assert set(range(int(low.item()), int(high.item()) + 1)) <= made


def test_more_points_never_err_more() -> None:
    rows = np.random.default_rng(0).standard_t(3, (12, 40))
    errors = [np.square(sums(rows, 2, count).decode() - rows).sum() for count in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 500


def test_coarse_and_fine_of_two_channels() -> None:
    taps = np.array([[0.02, -0.01, 0.03, 0.015, 1.0, -0.025, 0, 0.012, -0.03]] * 2, np.float32).reshape(2, 1, 3, 3)
    taps[1, 0, 1, 1] = 0.4
    coarse, fine = coarse_and_fine(taps)
    whole = fine.copy()
    whole[..., 1, 1] += coarse[..., 0, 0]
    np.testing.assert_array_equal(whole, taps)
    spec = replace(INT8_WEIGHT, granularity=PerAxis(0))

    def error(part: NDArray[np.float32]) -> Float:
        matrix = part.reshape(2, -1)
        decoded = Rtn().quantize(LayerProblem("layer", matrix, spec)).decode()
        return np.abs(decoded.astype(np.float64) - matrix).max(1)

    np.testing.assert_array_equal(error(coarse), 0)
    np.testing.assert_allclose(error(taps), [0.003748, 0.001496], atol=1e-6)
    assert (error(fine) <= 0.0001182).all()


@pytest.mark.parametrize(("per_tensor", "gain"), [(False, 10.0), (True, 3.0)])
def test_coarse_and_fine_of_a_merged_network(per_tensor: bool, gain: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.03, (32, 32, 3, 3))
    weight[..., 1, 1] = rng.normal(0, 0.2, (32, 32)) + 3 * np.eye(32) * rng.random(32)
    weight = weight.astype(np.float32)
    coarse, fine = coarse_and_fine(weight, per_tensor=per_tensor)
    whole = fine.copy()
    whole[..., 1, 1] += coarse[..., 0, 0]
    np.testing.assert_array_equal(whole, weight)
    spec = INT8_WEIGHT if per_tensor else replace(INT8_WEIGHT, granularity=PerAxis(0))
    errors = [
        np.linalg.norm(
            Rtn().quantize(LayerProblem("layer", part.reshape(32, -1), spec)).decode() - part.reshape(32, -1)
        )
        for part in (weight, fine)
    ]
    assert errors[0] > gain * errors[1]


def test_a_centre_of_zeros_is_no_division_by_zero() -> None:
    weight = np.ones((2, 1, 3, 3), np.float32)
    weight[0, 0, 1, 1] = 0
    coarse, fine = coarse_and_fine(weight)
    assert coarse[0].item() == 0
    assert np.isfinite(fine).all()
    np.testing.assert_array_equal(fine[0], weight[0])
