"""The Gram form of GPFQ against the textbook path-following loop on raw samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ptq.core.layer_statistics import LayerStatistics
from ptq.core.problem import LayerProblem
from ptq.core.spec import INT8_WEIGHT, PerAxis
from ptq.weights import Gpfq
from ptq.weights._output_error import GroupedProblem, best_scale
from ptq.weights.gpfq import _follow

Float = NDArray[np.float64]


def textbook(rows: Float, weight: Float, scale: Float, limit: int) -> Float:
    """u_t = u_{t-1} + w_t X_t - q_t X_t, q_t the level nearest to <X_t, u_{t-1} + w_t X_t> / |X_t|^2."""
    levels = np.zeros_like(weight)
    for o, row in enumerate(weight):
        u = np.zeros(len(rows))
        for t, w in enumerate(row):
            x = rows[:, t]
            z = x @ (u + w * x) / (x @ x) if (x @ x) > 0 else w
            levels[o, t] = min(max(np.rint(z / scale[o]), -limit), limit)
            u = u + (w - levels[o, t] * scale[o]) * x
    return levels


@pytest.mark.parametrize("samples", [200, 10], ids=["many", "fewer than inputs"])
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_codes_equal_the_textbook_loop(samples: int, bits: int, dead: bool, block: int) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((samples, 30)) @ rng.standard_normal((30, 30))
        if dead:
            rows[:, 4] = 0
        weight = rng.standard_normal((5, 30))
        spec = replace(INT8_WEIGHT, num_bits=bits, granularity=PerAxis(0))
        # Split batches: the sum of two is the whole.
        statistics = LayerStatistics.of(rows[None, :7]).merge(LayerStatistics.of(rows[None, 7:]))
        grouped = GroupedProblem.of(LayerProblem("layer", weight.astype(np.float32), spec, statistics))
        scale = best_scale(grouped)
        expected = textbook(rows, grouped.weight[0], scale[0], spec.qmax)
        np.testing.assert_array_equal(_follow(grouped, scale, block)[0], expected)


def test_groups_are_solved_on_their_own() -> None:
    rng = np.random.default_rng(0)
    rows, weight = rng.standard_normal((3, 50, 9)), rng.standard_normal((6, 9)).astype(np.float32)
    spec = replace(INT8_WEIGHT, num_bits=3, granularity=PerAxis(0))
    whole = Gpfq().quantize(LayerProblem("layer", weight, spec, LayerStatistics.of(rows)))
    for g in range(3):
        part = Gpfq().quantize(
            LayerProblem("part", weight[2 * g : 2 * g + 2], spec, LayerStatistics.of(rows[g : g + 1]))
        )
        np.testing.assert_array_equal(whole.codes[2 * g : 2 * g + 2], part.codes)


def test_worked_example() -> None:
    rows, weight = np.array([[1.0, 2, 0], [0, 1, 1]]), np.array([[0.3, 0.7, -0.4]])
    levels = textbook(rows, weight, np.array([0.5]), 2)
    np.testing.assert_array_equal(levels * 0.5, [[0.5, 0.5, 0.0]])


def test_orthogonal_inputs_make_it_rounding() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    spec = replace(INT8_WEIGHT, num_bits=4, granularity=PerAxis(0))
    grouped = GroupedProblem.of(LayerProblem("layer", weight, spec, LayerStatistics.of(np.eye(8)[None] * 3)))
    scale = best_scale(grouped)
    expected = np.clip(np.rint(grouped.weight / scale[..., None]), spec.qmin, spec.qmax)
    np.testing.assert_array_equal(_follow(grouped, scale, 4), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_error_obeys_its_bound(seed: int) -> None:
    """Without clipping |Xw - Xq|^2 <= scale^2 / 4 |X|_F^2."""
    rng = np.random.default_rng(seed)
    rows, weight = rng.standard_normal((16, 200)), rng.uniform(-1, 1, (3, 200))
    spec = replace(INT8_WEIGHT, num_bits=8, granularity=PerAxis(0))
    grouped = GroupedProblem.of(LayerProblem("layer", weight.astype(np.float32), spec, LayerStatistics.of(rows[None])))
    scale = np.full((1, 3), 0.05)
    error = np.square(rows @ (_follow(grouped, scale, 64)[0] * 0.05 - grouped.weight[0]).T).sum(0)
    assert (error <= 0.05**2 / 4 * np.square(rows).sum()).all()
