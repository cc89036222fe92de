"""The Gram form of GPFQ against the textbook path-following loop on raw samples, and the theory's promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ptq.core.layer_statistics import LayerStatistics
from ptq.core.problem import LayerProblem
from ptq.core.spec import INT8_WEIGHT, PerAxis
from ptq.weights import Gpfq
from ptq.weights._grid_search import best_scale
from ptq.weights._problem import GroupedProblem

Float = NDArray[np.float64]
WIDE = 10**6  # levels nothing is clipped to


def textbook(
    given: Float, original: Float, weight: Float, scale: Float, limits: tuple[int, int]
) -> tuple[Float, Float]:
    """u_t = u_{t-1} + w_t X_t - q_t X~_t, q_t the level nearest to z_t = <X~_t, u_{t-1} + w_t X_t> / |X~_t|^2."""
    levels, targets = np.zeros_like(weight), np.zeros_like(weight)
    for o, row in enumerate(weight):
        u = np.zeros(len(given))
        for t, w in enumerate(row):
            x, seen = original[:, t], given[:, t]
            z = seen @ (u + w * x) / (seen @ seen) if (seen @ seen) > 0 else w
            targets[o, t] = z
            levels[o, t] = min(max(np.rint(z / scale[o]), limits[0]), limits[1])
            u = u + w * x - levels[o, t] * scale[o] * seen
    return levels, targets


def follow(rows: Float, original: Float | None, weight: Float, scale: Float, **options: int) -> Float:
    """Levels of the product's recursion, in float64 throughout. Rows [groups, positions, in], weight [out, in]."""
    spec = replace(INT8_WEIGHT, granularity=PerAxis(0))
    statistics = LayerStatistics.of(rows, weight, original)
    problem = GroupedProblem.of(LayerProblem("layer", weight, spec, statistics))  # type: ignore[arg-type]
    method = Gpfq(block=options.get("block", 64))
    half = float(options.get("half", WIDE))
    problem = replace(problem, lowest=np.full_like(problem.weight, -half), highest=np.full_like(problem.weight, half))
    found = method._follow(problem, problem.grid(scale.reshape(len(rows), -1, 1)))
    return found.levels.reshape(weight.shape)


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("samples", [200, 10], ids=["many", "fewer than inputs"])
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("block", [1, 7, 32, 30])
def test_codes_equal_the_textbook_loop(samples: int, bits: int, dead: bool, block: int, matched: bool) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        original = rng.standard_normal((samples, 30)) @ rng.standard_normal((30, 30))
        rows = original if matched else original + 0.2 * rng.standard_normal(original.shape)
        if dead:
            rows[:, 4] = 0
        weight = rng.standard_normal((5, 30)).astype(np.float32)
        spec = replace(INT8_WEIGHT, num_bits=bits, granularity=PerAxis(0))
        parts = [
            LayerStatistics.of(rows[None, part], weight, None if matched else original[None, part])
            for part in (slice(7), slice(7, None))
        ]  # split batches: the sum of two is the whole
        grouped = GroupedProblem.of(LayerProblem("layer", weight, spec, parts[0].merge(parts[1])))
        scale = best_scale(grouped)
        expected, _ = textbook(rows, original, grouped.weight[0], scale[0, :, 0], spec.limits)
        np.testing.assert_array_equal(Gpfq(block=block)._follow(grouped, grouped.grid(scale)).levels[0], expected)


@pytest.mark.parametrize("columns", [9, 27], ids=["depthwise", "grouped"])
def test_groups_equal_the_textbook_loop(columns: int) -> None:
    rng = np.random.default_rng(0)
    original, weight = rng.standard_normal((3, 50, columns)), rng.standard_normal((6, columns))
    rows = original + 0.1 * rng.standard_normal(original.shape)
    scale = np.full(6, 0.3)
    found = follow(rows, original, weight, scale, half=7)
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        expected, _ = textbook(rows[g], original[g], weight[part], scale[part], (-7, 7))
        np.testing.assert_array_equal(found[part], expected)


def worked(second: float) -> tuple[Float, Float, Float]:
    """Inputs of the worked examples: float rows, quantized rows, weight."""
    original = np.array([[1.0, 2, 0], [0, 1, 1]])
    given = original.copy()
    given[0, 1] = second
    return original, given, np.array([[0.3, 0.7, -0.4]])


@pytest.mark.parametrize(
    ("second", "targets", "codes", "left"),
    [
        (2.0, [0.3, 0.62, -0.2], [0.5, 0.5, 0.0], [0.2, -0.2]),
        (1.5, [0.3, 0.7692308, -0.7], [0.5, 1.0, -0.5], [-0.3, -0.2]),
    ],
    ids=["equal inputs", "unequal inputs"],
)
def test_worked_examples(second: float, targets: list[float], codes: list[float], left: list[float]) -> None:
    original, given, weight = worked(second)
    levels, seen = textbook(given, original, weight, np.array([0.5]), (-2, 2))
    np.testing.assert_allclose(seen[0], targets, atol=1e-7)
    np.testing.assert_allclose(levels[0] * 0.5, codes)
    found = follow(given[None], original[None], weight, np.array([0.5]), half=2)
    np.testing.assert_array_equal(found, levels)
    np.testing.assert_allclose(original @ weight[0] - given @ (found[0] * 0.5), left, atol=1e-12)


def test_equal_columns_are_a_sigma_delta_modulator() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((1, 20, 1)), 10, axis=2)
    found = follow(rows, None, np.full((1, 10), 0.3001), np.ones(1))  # 0.3 would tie
    np.testing.assert_array_equal(found[0], [0, 1, 0, 0, 1, 0, 0, 0, 1, 0])
    for seed in range(20):
        weight = np.random.default_rng(seed).uniform(-1, 1, (1, 10))
        assert abs(weight.sum() - follow(rows, None, weight, np.ones(1)).sum()) <= 0.5 + 1e-9


def test_dead_columns_keep_their_weight() -> None:
    rows = np.array([[[1.0, 0], [1, 0]]])
    found = follow(rows, None, np.array([[0.6, 0.9]]), np.array([0.5]), half=2)
    np.testing.assert_allclose(found * 0.5, [[0.5, 1.0]])


def test_orthogonal_inputs_make_it_rounding() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 8))
    found = follow(np.eye(8)[None] * 3, None, weight, np.full(4, 0.3))
    np.testing.assert_array_equal(found, np.rint(weight / 0.3))


def test_weights_on_the_grid_stay() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(-7, 8, (4, 30)).astype(float)
    np.testing.assert_array_equal(
        follow(rng.standard_normal((1, 90, 30)), None, levels * 0.25, np.full(4, 0.25)), levels
    )


def test_scaling_weights_with_their_step_or_inputs_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    original, weight = rng.standard_normal((1, 60, 30)), rng.standard_normal((4, 30))
    rows, scale = original + 0.1 * rng.standard_normal(original.shape), np.full(4, 0.25)
    plain = follow(rows, original, weight, scale, half=7)
    np.testing.assert_array_equal(follow(rows, original, weight * 4, scale * 4, half=7), plain)
    np.testing.assert_array_equal(follow(rows * 8, original * 8, weight, scale, half=7), plain)


@pytest.mark.parametrize("seed", range(100))
def test_the_error_obeys_its_bounds(seed: int) -> None:
    """Without clipping |Xw - Xq|^2 <= s^2 / 4 |X|_F^2; with unequal inputs a running bound on |u_t|."""
    rng = np.random.default_rng(seed)
    original, weight, step = rng.standard_normal((16, 80)), rng.uniform(-1, 1, (1, 80)), 0.25
    equal = original @ (weight[0] - follow(original[None], None, weight, np.array([step]))[0] * step)
    assert np.square(equal).sum() <= step**2 / 4 * np.square(original).sum()
    rows = original + 0.3 * rng.standard_normal(original.shape)
    levels = follow(rows[None], original[None], weight, np.array([step]))[0]
    u, bound = np.zeros(16), 0.0
    for t in range(80):
        u = u + weight[0, t] * original[:, t] - levels[t] * step * rows[:, t]
        drift = abs(weight[0, t]) * np.linalg.norm(original[:, t] - rows[:, t])
        bound = np.hypot(bound + drift, step / 2 * np.linalg.norm(rows[:, t]))
        assert np.linalg.norm(u) <= bound * (1 + 1e-9)


def test_the_relative_error_decays_with_the_number_of_weights() -> None:
    """As log N / N on generic data, where plain rounding stays where it is."""
    sizes, medians, plain = [64, 128, 256, 512, 1024, 2048], [], []
    for size in sizes:
        errors, rounding = [], []
        for seed in range(9):
            rng = np.random.default_rng(seed)
            rows, weight = rng.standard_normal((16, size)), rng.uniform(-1, 1, (1, size))
            truth = np.square(rows @ weight[0]).sum()
            found = follow(rows[None], None, weight, np.array([0.25]))[0] * 0.25
            errors.append(np.square(rows @ (weight[0] - found)).sum() / truth)
            rounding.append(np.square(rows @ (weight[0] - np.rint(weight[0] / 0.25) * 0.25)).sum() / truth)
        medians.append(np.median(errors))
        plain.append(np.median(rounding))
    scaled = np.array(medians) * sizes / np.log(sizes)
    slope = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    assert scaled.max() <= 0.1
    assert slope <= -0.8
    assert np.polyfit(np.log(sizes), np.log(plain), 1)[0] > -0.3
