"""Every small division against all that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.allocation.mincut import FORBIDDEN, Division


@given(st.integers(0, 2**32 - 1))
def test_no_division_is_cheaper(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 7))
    costs = generator.integers(0, 10, (count, 2)).astype(float)
    edges = [
        (int(a), int(b), FORBIDDEN if generator.random() < 0.2 else float(generator.integers(0, 10)))
        for a, b in generator.integers(0, count, (count * 2, 2))
        if a != b
    ]
    problem = Division()
    for thing, (here, there) in enumerate(costs):
        problem.cost(thing, here, there)
    for a, b, cost in edges:
        problem.apart(a, b, cost)

    def total(chosen: set[object]) -> float:
        own = sum(costs[thing, 0 if thing in chosen else 1] for thing in range(count))
        return float(own + sum(cost for a, b, cost in edges if a in chosen and b not in chosen))

    best = min(total(set(each)) for n in range(count + 1) for each in itertools.combinations(range(count), n))
    assert total(problem.solve()) == pytest.approx(best)


def test_what_cannot_be() -> None:
    problem = Division()
    problem.cost("a", FORBIDDEN, FORBIDDEN)
    with pytest.raises(ValueError, match="forbidden"):
        problem.solve()
    with pytest.raises(ValueError, match="at least 0"):
        problem.cost("a", -1, 0)
