"""What every weight method has to do, run for each member of the family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptq.core.errors import CalibrationError
from ptq.core.layer_statistics import LayerStatistics, output_error
from ptq.core.problem import LayerProblem, Needs
from ptq.core.spec import INT8_WEIGHT, Granularity, PerAxis, PerBlock, PerTensor
from ptq.recipe import members, tag_of
from ptq.weights import Rtn, WeightMethod

MEMBERS = [pytest.param(member(), id=tag_of(member)) for member in members(WeightMethod)] + [
    pytest.param(Rtn("mse"), id="rtn-mse")
]
GRANULARITIES = [
    pytest.param(PerTensor(), id="tensor"),
    pytest.param(PerAxis(0), id="axis"),
    pytest.param(PerBlock(1, 16), id="block"),
]
each_method = pytest.mark.parametrize("method", MEMBERS)
each_granularity = pytest.mark.parametrize("granularity", GRANULARITIES)


def problem(weight: np.ndarray, granularity: Granularity, bits: int = 8) -> LayerProblem:
    spec = replace(INT8_WEIGHT, num_bits=bits, granularity=granularity)
    rng = np.random.default_rng(7)
    mixing = rng.standard_normal((weight.shape[1], weight.shape[1]))
    rows = rng.standard_normal((1, 300, weight.shape[1])) @ mixing
    return LayerProblem("layer", weight, spec, LayerStatistics.of(rows))


def heavy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (12, 40)).astype(np.float32)


def blocks_unsupported(method: WeightMethod, granularity: Granularity) -> bool:
    """Whether a method shares scales by row only; then it says so."""
    if method.needs is Needs.WEIGHT or not isinstance(granularity, PerBlock):
        return False
    with pytest.raises(ValueError, match="block"):
        method.quantize(problem(heavy(), granularity))
    return True


@each_method
@each_granularity
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_stay_in_range_and_decode_to_the_weight(
    method: WeightMethod, granularity: Granularity, bits: int
) -> None:
    if blocks_unsupported(method, granularity):
        return
    weight = heavy()
    kept = weight.copy()
    encoding = method.quantize(problem(weight, granularity, bits))
    spec = encoding.params.spec
    assert encoding.codes.dtype == spec.storage_dtype
    assert encoding.codes.min() >= spec.qmin
    assert encoding.codes.max() <= spec.qmax
    decoded = encoding.decode()
    assert decoded.shape == weight.shape
    assert np.square(decoded - weight).sum() < np.square(weight).sum()
    np.testing.assert_array_equal(weight, kept)
    assert encoding.size_in_bits() == weight.size * bits + encoding.params.scale.size * 32


@each_method
@each_granularity
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-40])
def test_constant_weights_survive(method: WeightMethod, granularity: Granularity, value: float) -> None:
    if blocks_unsupported(method, granularity):
        return
    weight = np.full((4, 32), value, np.float32)
    decoded = method.quantize(problem(weight, granularity)).decode()
    np.testing.assert_allclose(decoded, weight, rtol=1e-5, atol=1e-37)


@each_method
def test_same_problem_same_bits(method: WeightMethod) -> None:
    a, b = (method.quantize(problem(heavy(), PerAxis(0))) for _ in range(2))
    assert a.codes.tobytes() == b.codes.tobytes()
    assert a.params.scale.tobytes() == b.params.scale.tobytes()


@each_method
def test_rows_are_independent(method: WeightMethod) -> None:
    weight = heavy()
    order = np.random.default_rng(1).permutation(len(weight))
    plain = method.quantize(problem(weight, PerAxis(0))).codes
    np.testing.assert_array_equal(method.quantize(problem(weight[order], PerAxis(0))).codes, plain[order])


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_mse_clip_is_never_worse_than_absmax(bits: int) -> None:
    weight = heavy()
    errors = [
        np.square(Rtn(clip).quantize(problem(weight, PerAxis(0), bits)).decode() - weight).sum(1)
        for clip in ("absmax", "mse")
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert errors[1].sum() < errors[0].sum() or bits == 8


def error_of(method: WeightMethod, given: LayerProblem) -> float:
    assert given.statistics is not None
    error = (method.quantize(given).decode().astype(np.float64) - given.weight)[None]
    return float(output_error(error, given.statistics.gram).sum())


SOLVERS = [pytest.param(member, id=tag_of(member)) for member in members(WeightMethod) if member().needs is Needs.GRAM]
each_solver = pytest.mark.parametrize("solver", SOLVERS)


@each_solver
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0)], ids=["tensor", "axis"])
def test_a_solver_errs_less_at_the_output_than_rounding(solver: type, bits: int, granularity: Granularity) -> None:
    given = problem(heavy(), granularity, bits)
    assert error_of(solver(), given) < 0.7 * error_of(Rtn(), given)


@each_solver
def test_coordinate_descent_never_raises_the_error(solver: type) -> None:
    for seed in range(5):
        given = problem(heavy(seed), PerAxis(0), 3)
        errors = [error_of(solver(num_sweeps=n), given) for n in (0, 1, 4, 16)]
        assert errors == sorted(errors, reverse=True)


@each_solver
def test_missing_statistics_are_refused_by_name(solver: type) -> None:
    with pytest.raises(CalibrationError, match="'layer'"):
        solver().quantize(LayerProblem("layer", heavy(), INT8_WEIGHT))


@each_solver
def test_dead_inputs_keep_their_weights_and_nothing_is_nan(solver: type) -> None:
    rows = np.random.default_rng(0).standard_normal((1, 20, 40))
    rows[:, :, 7] = 0
    rows[:, :, 11] *= 1e-12
    given = LayerProblem("layer", heavy(), replace(INT8_WEIGHT, granularity=PerAxis(0)), LayerStatistics.of(rows))
    encoding = solver().quantize(given)
    step = encoding.params.scale[:, None]
    for column in (7, 11):
        assert (
            np.abs(encoding.decode() - heavy())[:, [column]] <= step * 0.51 + 0.35 * np.abs(heavy()[:, [column]])
        ).all()
    assert np.isfinite(encoding.decode()).all()
