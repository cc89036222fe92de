"""What every allocator has to do, run for each member of the family, with a cost of the test's own among others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from ptq.allocation import AllocationMethod, Greedy, MoreBits
from ptq.allocation.bit_plan import BitPlan, LayerBits
from ptq.allocation.budget import Allocator, Bound, Bytes, Cost, Macs
from ptq.allocation.points import ALL_POINTS, point_bits
from ptq.core.family import members, tag_of
from ptq.sensitivity.table import FLOAT, SensitivityTable, at_other_bits

MEMBERS = [pytest.param(member(), id=tag_of(member)) for member in members(AllocationMethod)]
each_member = pytest.mark.parametrize("member", MEMBERS)
BITS = tuple(range(2, 9))
ROUNDED = 1 + 1e-12
"""Sums in other orders differ in their last bits."""

Plan = Mapping[str, LayerBits]


@dataclass(frozen=True)
class Multipliers:
    """A cost of one's own: a multiplier of words of b bits has b^2 cells."""

    num_weights: Mapping[str, int]
    unit: ClassVar[str] = "cells"

    def of(self, layer: str, bits: LayerBits) -> float:
        rows = bits if isinstance(bits, tuple) else (bits,)
        return self.num_weights[layer] / len(rows) * sum(each**2 for each in rows)


COSTS = [pytest.param(Bytes, id="bytes"), pytest.param(Multipliers, id="multipliers")]
each_cost = pytest.mark.parametrize("kind", COSTS)


def random_table(seed: int, num_layers: int = 3, bits: tuple[int, ...] = BITS) -> SensitivityTable:
    """Errors that fall with every bit, by less and less."""
    rng = np.random.default_rng(seed)
    drops = np.sort(rng.exponential(1.0, (num_layers, len(bits))), 1)[:, ::-1] * rng.exponential(1.0, (num_layers, 1))
    error = drops[:, ::-1].cumsum(1)[:, ::-1]
    return SensitivityTable(tuple(f"l{index}" for index in range(num_layers)), bits, error, rest=0.1)


def sizes(seed: int, num_layers: int = 3, *, alike: bool = False) -> dict[str, int]:
    rng = np.random.default_rng(seed + 1000)
    return {f"l{index}": 800 if alike else int(rng.integers(1, 200)) * 8 for index in range(num_layers)}


def error_of(table: SensitivityTable, plan: Plan) -> float:
    """The slow way: every layer, or every feature of it, looked up."""
    total = table.rest
    for name, bits in plan.items():
        if isinstance(bits, tuple):
            total += sum(row[table.bits.index(each)] for row, each in zip(table.rows[name], bits, strict=True))
        else:
            total += float(table.error[table.layers.index(name), table.bits.index(bits)])
    return total


def cost_of(cost: Cost, plan: Plan) -> float:
    return sum(cost.of(name, bits) for name, bits in plan.items())


def every_plan(table: SensitivityTable) -> Iterator[dict[str, int]]:
    for chosen in itertools.product(table.bits, repeat=len(table.layers)):
        yield dict(zip(table.layers, chosen, strict=True))


def uniform(table: SensitivityTable, bits: int) -> dict[str, int]:
    return dict.fromkeys(table.layers, bits)


def limits_of(member: Allocator, table: SensitivityTable, cost: Cost) -> list[float]:
    """From the tightest that can be kept to one that asks for nothing."""
    ends = [uniform(table, bits) for bits in (table.bits[0], table.bits[-1])]
    if member.bounds is Bound.COST:
        low, high = (cost_of(cost, plan) for plan in ends)
    else:
        high, low = (error_of(table, plan) for plan in ends)
    return [(low + (high - low) * share) * ROUNDED for share in (0, 0.05, 0.2, 0.37, 0.5, 0.8, 1, 1.2)]


@each_member
@each_cost
@pytest.mark.parametrize("seed", range(12))
def test_the_limit_is_kept(member: Allocator, kind: type, seed: int) -> None:
    table, cost = random_table(seed), kind(sizes(seed))
    for limit in limits_of(member, table, cost):
        plan = member.allocate(table, cost, limit).layers
        assert tuple(plan) == table.layers
        found = cost_of(cost, plan) if member.bounds is Bound.COST else error_of(table, plan)
        assert found <= limit * ROUNDED


@each_member
@each_cost
@pytest.mark.parametrize("seed", range(12))
def test_a_wider_limit_never_makes_it_worse(member: Allocator, kind: type, seed: int) -> None:
    table, cost = random_table(seed, 5), kind(sizes(seed, 5))
    plans = [member.allocate(table, cost, limit).layers for limit in limits_of(member, table, cost)]
    costs, errors = [cost_of(cost, plan) for plan in plans], [error_of(table, plan) for plan in plans]
    freed = errors if member.bounds is Bound.COST else costs
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(freed))


def best_of(member: Allocator, table: SensitivityTable, cost: Cost, limit: float) -> float:
    """What is left to be made small, of the best of all plans."""
    plans = [(cost_of(cost, plan), error_of(table, plan)) for plan in every_plan(table)]
    if member.bounds is Bound.COST:
        return min(error for price, error in plans if price <= limit * ROUNDED)
    return min(price for price, error in plans if error <= limit * ROUNDED)


def left(member: Allocator, table: SensitivityTable, cost: Cost, plan: Plan) -> float:
    return error_of(table, plan) if member.bounds is Bound.COST else cost_of(cost, plan)


@each_member
@pytest.mark.parametrize("seed", range(12))
def test_layers_of_one_size_get_the_best_of_all_plans(member: Allocator, seed: int) -> None:
    """Never worse than all layers alike at the same cost, or error, then."""
    table, cost = random_table(seed), Bytes(sizes(seed, alike=True))
    rivals = [uniform(table, bits) for bits in BITS]
    bounded = cost_of if member.bounds is Bound.COST else lambda _cost, plan: error_of(table, plan)
    ends = [bounded(cost, plan) * ROUNDED for plan in rivals]
    for limit in [*limits_of(member, table, cost)[:-1], *ends]:
        found = left(member, table, cost, member.allocate(table, cost, limit).layers)
        assert found == pytest.approx(best_of(member, table, cost, limit))
    for limit, rival in zip(ends, rivals, strict=True):
        found = left(member, table, cost, member.allocate(table, cost, limit).layers)
        assert found <= left(member, table, cost, rival) * ROUNDED


@each_member
@each_cost
@pytest.mark.parametrize("seed", range(12))
def test_layers_of_any_sizes_miss_the_best_plan_by_a_step_at_most(member: Allocator, kind: type, seed: int) -> None:
    table, cost = random_table(seed), kind(sizes(seed))
    if member.bounds is Bound.COST:
        step = float((table.error[:, :-1] - table.error[:, 1:]).max())
    else:
        step = max(cost.of(name, b + 1) - cost.of(name, b) for name in table.layers for b in BITS[:-1])
    for limit in limits_of(member, table, cost):
        found = left(member, table, cost, member.allocate(table, cost, limit).layers)
        assert found <= best_of(member, table, cost, limit) + step


@each_member
@pytest.mark.parametrize("seed", range(6))
def test_no_layer_gets_a_word_length_that_is_ruled_out(member: Allocator, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, cost = random_table(seed, 4), Bytes(sizes(seed, 4))
    allowed = {name: sorted(rng.choice(BITS, rng.integers(1, 5), replace=False).tolist()) for name in table.layers}
    for limit in limits_of(member, table, cost):
        plan = member.allocate(table.among(allowed), cost, limit).layers
        assert all(bits in allowed[name] for name, bits in plan.items())


@each_member
def test_out_of_reach_it_comes_as_near_as_it_can(member: Allocator) -> None:
    table, cost = random_table(0), Bytes(sizes(0))
    nearest = uniform(table, 2 if member.bounds is Bound.COST else 8)
    assert member.allocate(table, cost, -1.0).layers == nearest


@each_member
def test_what_gains_nothing_is_not_bought(member: Allocator) -> None:
    table = SensitivityTable(("a", "b"), (4, 8), np.array([[1.0, 0.0], [0.5, 0.5]]))
    limit = 1e9 if member.bounds is Bound.COST else 0.0
    assert member.allocate(table, Bytes({"a": 8, "b": 8}), limit).layers == {"a": 8, "b": 4}


@each_member
def test_a_bad_bargain_on_the_way_to_a_good_one_is_passed_over(member: Allocator) -> None:
    """Three bits of the first layer gain nothing, four gain most of all."""
    table = SensitivityTable(("a", "b"), (2, 3, 4), np.array([[9.0, 9.0, 1.0], [5.0, 4.0, 3.5]]))
    cost = Bytes({"a": 8, "b": 8})
    assert member.allocate(table, cost, 6.0).layers == {"a": 4, "b": 2}  # bytes, or error


@each_member
def test_an_empty_table_has_an_empty_plan(member: Allocator) -> None:
    assert member.allocate(SensitivityTable((), BITS, np.zeros((0, len(BITS)))), Bytes({}), 1.0) == BitPlan({})


@pytest.mark.parametrize("seed", range(12))
def test_features_go_their_own_way_where_they_are_told_apart(seed: int) -> None:
    """Within one layer a step costs the same in every feature: what is bought is the best of all plans."""
    rng = np.random.default_rng(seed)
    drops = np.sort(rng.exponential(1.0, (4, 3)), 1)[:, ::-1]
    rows = drops[:, ::-1].cumsum(1)[:, ::-1]
    table, cost = SensitivityTable.of_rows({"a": rows}, (2, 4, 6)), Bytes({"a": 32})
    every = [{"a": bits} for bits in itertools.product((2, 4, 6), repeat=4)]
    for limit in range(8, 25, 2):
        plan = Greedy().allocate(table, cost, limit).layers
        assert cost_of(cost, plan) <= limit
        least = min(error_of(table, each) for each in every if cost_of(cost, each) <= limit)
        assert error_of(table, plan) == pytest.approx(least)


def test_single_features_never_stay_float() -> None:
    """However good a bargain that would be."""
    rows = {"a": np.array([[1.0, 0.99, 0.0], [2.0, 1.99, 0.0]])}
    table = SensitivityTable.of_rows(rows, (4, 8, FLOAT))
    assert Greedy().allocate(table, Bytes({"a": 16}), 16.0).layers == {"a": (8, 8)}


@dataclass(frozen=True)
class Priced:
    """A price for every word length."""

    prices: Mapping[int, float]
    unit: ClassVar[str] = "coins"

    def of(self, _layer: str, bits: LayerBits) -> float:
        assert isinstance(bits, int)
        return self.prices[bits]


def test_a_cheap_step_behind_one_that_does_not_fit_is_not_taken() -> None:
    table, cost = SensitivityTable(("a",), (2, 3, 4), np.array([[21.0, 1.0, 0.0]])), Priced({2: 0, 3: 10, 4: 11})
    bits = [Greedy().allocate(table, cost, limit).layers["a"] for limit in (0, 5, 10, 10.5, 11)]
    assert bits == [2, 2, 3, 3, 4]


@pytest.mark.parametrize("cost", [Bytes({"a": 24}), Macs({"a": 24}, {"a": 3}), Multipliers({"a": 24})])
def test_costs_add_up_over_features_and_grow_with_bits(cost: Cost) -> None:
    assert cost.of("a", (3, 6, 8)) == pytest.approx(sum(cost.of("a", bits) for bits in (3, 6, 8)) / 3)
    assert cost.of("a", (5, 5)) == cost.of("a", 5)
    assert all(cost.of("a", b) <= cost.of("a", b + 1) for b in range(3, 8))
    assert cost.unit


def test_the_costs_of_today() -> None:
    assert Bytes({"a": 100}).of("a", 4) == 50
    assert Bytes({"a": 100}).of("a", FLOAT) == 400
    macs = Macs({"a": 100}, {"a": 3})
    assert [macs.of("a", bits) for bits in (2, 3, 4, 6, 8, 9)] == [0, 0, 100, 100, 200, 200]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.9, 1.7, 10.0])
def test_points_are_spent_as_the_plain_loop_spends_them(seed: int, share: float) -> None:
    """The twin: all further points of all features in one list, the best bargain first."""
    rng = np.random.default_rng(seed)
    num_bits = {f"l{index}": int(rng.integers(2, 9)) for index in range(4)}
    gains = {name: rng.exponential(1.0, int(rng.integers(1, 9))) * rng.integers(0, 2) for name in num_bits}
    prices = {name: int(rng.integers(1, 5)) * 36 for name in num_bits}
    items = []
    for name, gain in gains.items():
        for point in range(1, len(point_bits(num_bits[name]))):
            part = 4.0 ** (-num_bits[name] * (point - 1)) - 4.0 ** (-num_bits[name] * point)
            items += [(name, row, float(each) * part) for row, each in enumerate(gain)]
    budget = share * sum(prices[name] * len(gain) for name, gain in gains.items())
    limit, points = budget, {name: [1] * len(gain) for name, gain in gains.items()}
    for name, row, gain in sorted(items, key=lambda item: -item[2] / prices[item[0]]):
        if prices[name] <= budget and gain > 0:
            budget -= prices[name]
            points[name][row] += 1
    expected = {name: tuple(min(each * num_bits[name], 8) for each in own) for name, own in points.items()}
    rows = {name: at_other_bits(gain, num_bits[name], ALL_POINTS) for name, gain in gains.items()}
    table = SensitivityTable.of_rows(rows, ALL_POINTS).among({name: point_bits(b) for name, b in num_bits.items()})
    cost = Macs({name: prices[name] * len(gain) for name, gain in gains.items()}, num_bits)
    assert Greedy().allocate(table, cost, limit).layers == expected


@pytest.mark.parametrize("seed", range(20))
def test_more_bits_take_most_error_for_their_bytes(seed: int) -> None:
    """Weights whose error a bit quarters, or float; greedy, and a bit is a bit: at most a quarter over the best."""
    rng = np.random.default_rng(seed)
    lengths, energy = (*range(4, 9), FLOAT), rng.exponential(1e-2, 4)
    table = SensitivityTable(("l0", "l1", "l2", "l3"), lengths, at_other_bits(energy, 4, lengths))
    cost = Bytes({name: int(rng.integers(50, 5000)) for name in table.layers})
    limit = error_of(table, uniform(table, 4)) * float(rng.uniform(0.02, 0.9))
    plan = MoreBits().allocate(table, cost, limit).layers
    assert error_of(table, plan) <= limit
    assert cost_of(cost, plan) <= best_of(MoreBits(), table, cost, limit) * 1.25


def test_what_no_bits_can_do_ends_in_float() -> None:
    error = np.array([[0.2, 0.1 + 0.1 / 256, 0.0], [np.inf, 0.1, 0.0]])
    table, cost = SensitivityTable(("a", "b"), (4, 8, FLOAT), error), Bytes({"a": 10, "b": 10})
    assert MoreBits().allocate(table, cost, 0.0).layers == {"a": FLOAT, "b": FLOAT}
    assert MoreBits().allocate(table, cost, 1.0).layers == {"a": 4, "b": 8}
    missed = SensitivityTable(table.layers, table.bits, error, rest=1.0)
    assert MoreBits().allocate(missed, cost, 0.5).floats == ("a", "b")
