"""What every weight method has to do, run for each member of the family."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ptq.codecs.weights import pack_words, unpack_places, unpack_words
from ptq.core.archive import freeze
from ptq.core.encoding import IntegerWeight
from ptq.core.errors import CalibrationError, RecipeError
from ptq.core.family import members, tag_of
from ptq.core.layer_statistics import LayerStatistics, output_error
from ptq.core.problem import LayerProblem, Needs
from ptq.core.saturation import PAIR_SUM, overflows
from ptq.core.spec import INT8_WEIGHT, Granularity, PerAxis, PerBlock, PerTensor
from ptq.core.storage import Alphabet, Words
from ptq.core.widths import Widths
from ptq.weights import Gpfq, Gptq, Qronos, Rtn, WeightMethod
from ptq.weights._descent import Descent
from ptq.weights._grid_search import best_grid, best_scale
from ptq.weights._problem import Candidate, GroupedProblem
from ptq.weights._solve import in_order, settle

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
    rows, _ = inputs(weight.shape[1])
    return LayerProblem("layer", weight, spec, LayerStatistics.of(rows, weight))


def inputs(fan_in: int, seed: int = 7, samples: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Correlated rows as the quantized and the float network give them."""
    rng = np.random.default_rng(seed)
    original = rng.standard_normal((1, samples, fan_in)) @ rng.standard_normal((fan_in, fan_in))
    drift = np.eye(fan_in) + 0.05 * rng.standard_normal((fan_in, fan_in))
    return original @ drift + 0.1 * rng.standard_normal(original.shape), original


def mismatched(weight: np.ndarray, bits: int, samples: int = 300, seed: int = 7) -> LayerProblem:
    rows, original = inputs(weight.shape[1], seed, samples)
    spec = replace(INT8_WEIGHT, num_bits=bits, granularity=PerAxis(0))
    return LayerProblem("layer", weight, spec, LayerStatistics.of(rows, weight, original))


def heavy(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (12, 40)).astype(np.float32)


@each_method
@each_granularity
@pytest.mark.parametrize("widths", [None, Widths.in_rows(np.full(12, 8, np.int8), 40)], ids=["one", "two"])
def test_neighbours_that_share_room_never_overflow(
    method: WeightMethod, granularity: Granularity, widths: Widths | None
) -> None:
    """And err less than all weights with a bit less, which is the other way out; unless no level is too large."""
    order = np.random.default_rng(1).permutation(40)
    for seed in range(4):
        whole = problem(crowded(seed), granularity, 8 if widths is None else 4)
        whole = replace(whole, widths=None if isinstance(granularity, PerBlock) else widths)
        found, free = (method.quantize(replace(whole, order=each)) for each in (order, None))
        if isinstance(granularity, PerBlock):  # their products are summed in 32 bits, or in float
            np.testing.assert_array_equal(found.decode(), free.decode())
            continue
        assert isinstance(found, IntegerWeight)
        assert isinstance(free, IntegerWeight)
        assert not overflows(found.codes, order)
        if np.abs(free.codes).max() <= PAIR_SUM // 2:  # no two of them could
            np.testing.assert_array_equal(found.decode(), free.decode())
            continue
        assert overflows(free.codes, order), "or nothing is shown here"
        assert np.abs(found.codes).max() > PAIR_SUM // 2
        less = method.quantize(problem(whole.weight, granularity, 7)).decode()
        moments = whole.statistics if Needs.MOMENTS in method.needs else None
        errors = [weigh(each - whole.weight, moments) for each in (found.decode(), less)]
        assert errors[0] < errors[1] * (1.0 if widths is None else 1.2)


def crowded(seed: int) -> np.ndarray:
    """Weights of which many in every row are large, under one scale too."""
    rng = np.random.default_rng(seed)
    tails = rng.standard_t(3, (12, 40))
    return (tails / np.abs(tails).max(1, keepdims=True) * (1 + 0.2 * rng.random((12, 1)))).astype(np.float32)


def weigh(error: np.ndarray, moments: LayerStatistics | None) -> float:
    """Energy of a weight's error, at the output if the method looks at it."""
    return float(np.square(error).sum() if moments is None else output_error(error[None], moments.gram).sum())


@each_method
@each_granularity
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_stay_in_range_and_decode_to_the_weight(
    method: WeightMethod, granularity: Granularity, bits: int
) -> None:
    weight = heavy()
    kept = weight.copy()
    encoding = method.quantize(problem(weight, granularity, bits))
    assert encoding.shape == weight.shape
    assert encoding.num_bits <= bits
    assert encoding.num_levels() <= 1 << encoding.num_bits
    assert encoding.covers(encoding.decode().astype(np.float64)).all()
    if isinstance(encoding, IntegerWeight):
        low, high = encoding.limits
        assert encoding.codes.dtype == np.int8
        assert (encoding.codes >= low).all()
        assert (encoding.codes <= high).all()
    decoded = encoding.decode()
    assert decoded.shape == weight.shape
    assert decoded.dtype == np.float32
    assert np.square(decoded - weight).sum() < np.square(weight).sum()
    np.testing.assert_array_equal(weight, kept)


@each_method
@each_granularity
@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
def test_a_weight_is_as_long_as_its_words(method: WeightMethod, granularity: Granularity, bits: int) -> None:
    """Exactly that of the method's words where they are plain; else what a codec makes of them."""
    encoding = method.quantize(problem(heavy(), granularity, bits))
    packed = pack_words(encoding)
    stored = 8 * sum(len(words) for words in packed.values())
    if isinstance(encoding, IntegerWeight):
        np.testing.assert_array_equal(unpack_words(packed, encoding.storage, encoding.shape), encoding.codes)
        beside = encoding.scale.size * 32
        beside += 8 * len(encoding.storage.levels) if isinstance(encoding.storage, Alphabet) else 0
    else:
        np.testing.assert_array_equal(unpack_places(packed, len(encoding.table), encoding.shape), encoding.indices)
        beside = encoding.table.size * 32
    assert 0 <= stored - (encoding.size_in_bits() - beside) <= 24  # each of at most three planes ends with a whole byte
    if isinstance(encoding, IntegerWeight) and isinstance(encoding.storage, Words):
        assert encoding.size_in_bits() == heavy().size * bits + encoding.scale.size * 32


@each_method
@each_granularity
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-40])
def test_constant_weights_survive(method: WeightMethod, granularity: Granularity, value: float) -> None:
    weight = np.full((4, 32), value, np.float32)
    decoded = method.quantize(problem(weight, granularity)).decode()
    np.testing.assert_allclose(decoded, weight, rtol=1e-5, atol=1e-37)


@each_method
def test_same_problem_same_bits(method: WeightMethod) -> None:
    a, b = (method.quantize(problem(heavy(), PerAxis(0))) for _ in range(2))
    assert freeze(a) == freeze(b)


DEPENDENT = [
    pytest.param(Gpfq(stochastic=True), PerAxis(0), id="chance"),
    pytest.param(Gpfq(alphabet="paper"), PerAxis(0), id="one step for all"),
]
INDEPENDENT = [
    pytest.param(each.values[0], granularity, id=f"{each.id}-{type(granularity).__name__}")
    for each in MEMBERS
    for granularity in (PerAxis(0), PerBlock(1, 16))
]


@pytest.mark.parametrize(("method", "granularity"), [*INDEPENDENT, *DEPENDENT])
def test_rows_are_as_independent_as_the_method_says(method: WeightMethod, granularity: Granularity) -> None:
    """In another order they come out the same, and some of them alone as with all others but for rounding."""
    weight, order = heavy(), np.random.default_rng(1).permutation(12)
    plain, turned, some = (
        method.quantize(problem(weight[rows], granularity, 4)).decode() for rows in (slice(None), order, order[:7])
    )
    same = np.array_equal(turned, plain[order]) and np.allclose(some, plain[order[:7]], rtol=1e-6, atol=0)
    assert same == method.independent_rows


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
    statistics = given.statistics
    return statistics.relative_error(method.quantize(given).decode(), statistics.target_correlation(given.weight))


SOLVERS = [
    pytest.param(member, id=tag_of(member)) for member in members(WeightMethod) if Needs.MOMENTS in member().needs
]
each_solver = pytest.mark.parametrize("solver", SOLVERS)


@each_solver
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0)], ids=["tensor", "axis"])
def test_a_solver_errs_less_at_the_output_than_rounding(solver: type, bits: int, granularity: Granularity) -> None:
    given = problem(heavy(), granularity, bits)
    assert error_of(solver(), given) < 0.7 * error_of(Rtn(), given)


@each_solver
def test_polishing_pays(solver: type) -> None:
    for seed in range(5):
        given = mismatched(heavy(seed), 3, seed=seed)
        assert error_of(solver(num_sweeps=8), given) < error_of(solver(num_sweeps=0), given)


LAYOUTS = [pytest.param(PerAxis(0), id="axis"), pytest.param(PerBlock(1, 16), id="block")]


def started(granularity: Granularity, bits: int, seed: int) -> tuple[GroupedProblem, Candidate]:
    """A problem, and what rounding makes of it."""
    given = mismatched(heavy(seed), bits, seed=seed)
    grouped = GroupedProblem.of(replace(given, spec=replace(given.spec, granularity=granularity)))
    return grouped, grouped.rounded(grouped.weight, best_scale(grouped))


def polished(grouped: GroupedProblem, start: Candidate, sweeps: int) -> Candidate:
    descent = Descent(grouped, start)
    descent.polish(sweeps)
    return descent.found


def refitted(grouped: GroupedProblem, start: Candidate) -> Candidate:
    descent = Descent(grouped, start)
    descent.refit()
    return descent.found


@pytest.mark.parametrize("granularity", LAYOUTS)
@pytest.mark.parametrize("bits", [8, 3, 2])
def test_coordinate_descent_and_fitted_scales_never_raise_the_error(bits: int, granularity: Granularity) -> None:
    for seed in range(5):
        grouped, start = started(granularity, bits, seed)
        errors = [grouped.error(polished(grouped, start, sweeps)) for sweeps in (0, 1, 2, 4, 16)]
        never_rising(errors)
        never_rising([errors[0], grouped.error(refitted(grouped, start))])
        for sweeps in (1, 2, 5, 8):
            never_rising([errors[0], grouped.error(settle(grouped, start, sweeps))])


def never_rising(errors: list[np.ndarray]) -> None:
    assert all((after <= before + 1e-9 * np.abs(before)).all() for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("granularity", LAYOUTS)
def test_the_residual_follows_scales_and_levels(granularity: Granularity) -> None:
    grouped, start = started(granularity, 3, 0)
    kept, descent = (start.levels.copy(), start.scale.copy()), Descent(grouped, start)
    for move in (descent.refit, lambda: descent.polish(2)):
        before = descent.found
        move()
        after = descent.found
        assert (after.scale != before.scale).any() or (after.levels != before.levels).any()
        fresh = Descent(grouped, after).residual
        np.testing.assert_allclose(descent.residual, fresh, atol=1e-8 * np.abs(fresh).max())
    for found, original in zip((start.levels, start.scale), kept, strict=True):
        np.testing.assert_array_equal(found, original)


@each_solver
@pytest.mark.parametrize("granularity", LAYOUTS)
@pytest.mark.parametrize("order", ["natural", "norm", "activation"])
def test_a_start_hides_no_output_in_what_it_is_given(solver: type, granularity: Granularity, order: str) -> None:
    """Nobody writes to the arrays of others, and scales have one rank."""
    for settings in ({}, {"step": "search"}) if solver is Gpfq else ({},):
        grouped, start = started(granularity, 3, 0)
        kept = start.scale.copy()
        found = in_order(grouped, start.scale, solver(**settings)._start, order)
        np.testing.assert_array_equal(start.scale, kept)
        assert found.scale.shape == kept.shape
        assert found.levels.shape == grouped.weight.shape
        assert np.array_equal(found.scale, kept) == (not settings)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("symmetric", [True, False], ids=["centred", "zero-point"])
def test_fitted_blocks_round_better_than_searched_ones(bits: int, symmetric: bool) -> None:
    given = problem(heavy(), PerBlock(1, 16), bits)
    grouped = GroupedProblem.of(replace(given, spec=replace(given.spec, symmetric=symmetric)))
    fitted, scale = best_grid(grouped)
    for part in (slice(0, 16), slice(16, 32), slice(32, 40)):
        gram, target = grouped.gram[:, part, part], grouped.target[..., part]
        errors = []
        for chosen, steps in ((grouped, best_scale(grouped)), (fitted, scale)):
            off = (chosen.rounded(chosen.target, steps).levels * chosen.grid(steps).along())[..., part] - target
            errors.append(np.einsum("goi,gij,goj->go", off, gram, off))
        assert (errors[1] <= errors[0] * (1 + 1e-9)).all()
        assert errors[1].sum() < errors[0].sum()


@each_solver
def test_missing_statistics_are_refused_by_name(solver: type) -> None:
    with pytest.raises(CalibrationError, match="'layer'"):
        solver().quantize(LayerProblem("layer", heavy(), INT8_WEIGHT))


@each_solver
def test_dead_inputs_keep_their_weights_and_nothing_is_nan(solver: type) -> None:
    rows = np.random.default_rng(0).standard_normal((1, 20, 40))
    rows[:, :, 7] = 0
    rows[:, :, 11] *= 1e-12
    spec = replace(INT8_WEIGHT, granularity=PerAxis(0))
    given = LayerProblem("layer", heavy(), spec, LayerStatistics.of(rows, heavy()))
    encoding = solver().quantize(given)
    step = encoding.params.scale[:, None]
    for column in (7, 11):
        assert (
            np.abs(encoding.decode() - heavy())[:, [column]] <= step * 0.51 + 0.35 * np.abs(heavy()[:, [column]])
        ).all()
    assert np.isfinite(encoding.decode()).all()


@each_solver
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("samples", [300, 12], ids=["many", "fewer than inputs"])
def test_a_solver_makes_up_for_wrong_inputs(solver: type, bits: int, samples: int) -> None:
    for seed in range(3):
        given = mismatched(heavy(seed), bits, samples, seed)
        assert error_of(solver(), given) < error_of(Rtn("mse"), given)
        assert np.isfinite(solver().quantize(given).decode()).all()


@each_solver
@pytest.mark.parametrize("bits", [4, 2])
def test_the_error_of_the_moments_is_that_of_the_rows(solver: type, bits: int) -> None:
    given = mismatched(heavy(), bits)
    rows, original = inputs(40)
    truth = original[0] @ heavy().astype(np.float64).T
    decoded = solver().quantize(given).decode().astype(np.float64)
    direct = np.square(rows[0] @ decoded.T - truth).sum() / np.square(truth).sum()
    assert error_of(solver(), given) == pytest.approx(direct, rel=1e-6)


def test_qronos_is_as_good_as_the_best_at_three_bits() -> None:
    """Over several layers, as single ones go either way; within one per cent of the best."""
    totals = {
        solver: sum(error_of(solver(), mismatched(heavy(seed), 3, seed=seed)) for seed in range(8))
        for solver in (Rtn, Gpfq, Gptq, Qronos)
    }
    assert totals[Qronos] <= 1.01 * min(totals.values())


@pytest.mark.parametrize("order", ["natural", "norm", "activation"])
@each_solver
def test_codes_come_back_in_the_order_of_the_columns(solver: type, order: str) -> None:
    """On a grid fine enough, every order lands near the weight."""
    given = problem(heavy(), PerAxis(0), 8)
    decoded = solver(order=order, num_sweeps=0).quantize(given).decode()
    assert np.abs(decoded - heavy()).max() < 0.2 * np.abs(heavy()).max()
    assert error_of(solver(order=order, num_sweeps=0), given) < 1e-3


@pytest.mark.parametrize("block", [1, 7, 40, 64])
@pytest.mark.parametrize("solver", [Gpfq, Gptq, Qronos])
def test_blocks_change_speed_only(solver: type, block: int) -> None:
    given = mismatched(heavy(), 3)
    codes = solver(block=block, num_sweeps=0).quantize(given).codes
    np.testing.assert_array_equal(codes, solver(block=17, num_sweeps=0).quantize(given).codes)


def zeros(method: Gpfq) -> float:
    return float(np.mean(method.quantize(problem(heavy(), PerAxis(0), 4)).codes == 0))


@pytest.mark.parametrize("sparse", ["soft", "hard"])
def test_thresholds_make_weights_sparse(sparse: str) -> None:
    shares = [zeros(Gpfq(sparse=sparse, threshold=threshold)) for threshold in (0.7, 1.2, 2.0)]
    assert zeros(Gpfq()) < shares[0] < shares[1] < shares[2]


def test_stochastic_rounding_is_unbiased_and_repeatable() -> None:
    weight = np.full((4000, 1), 0.3, np.float32)
    weight[0] = 1.0
    given = problem(weight, PerTensor(), 3)
    levels = Gpfq(stochastic=True).quantize(given)
    np.testing.assert_array_equal(levels.codes, Gpfq(stochastic=True).quantize(given).codes)
    assert (levels.codes != Gpfq(stochastic=True, seed=1).quantize(given).codes).any()
    assert levels.decode()[1:].mean() == pytest.approx(0.3, rel=0.03)
    assert len(np.unique(levels.codes[1:])) == 2


def test_the_paper_s_alphabet_has_two_levels_to_the_b_plus_one_and_says_so() -> None:
    encoding = Gpfq(alphabet="paper").quantize(problem(heavy(), PerAxis(0), 2))
    assert set(np.unique(encoding.codes)) == {-2, -1, 0, 1, 2}
    assert encoding.params.spec.num_bits == 3
    assert len(np.unique(encoding.params.scale)) == 1
    assert encoding.params.scale[0] == pytest.approx(1.16 * np.abs(heavy()).max(1).mean() / 2, rel=1e-6)
    with pytest.raises(RecipeError, match="257 levels"):
        Gpfq(alphabet="paper").quantize(problem(heavy(), PerAxis(0), 8))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_searched_step_is_never_worse(bits: int) -> None:
    for seed in range(4):
        given = mismatched(heavy(seed), bits, seed=seed)
        plain, searched = (error_of(Gpfq(step=step, num_sweeps=0), given) for step in ("range", "search"))
        assert searched <= plain * (1 + 1e-9)
