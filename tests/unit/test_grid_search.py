"""Candidates row by row, against all of them laid side by side."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ptq.core.grid_search import best_ratios, keep_best

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1 << 20))


@given(SIZES)
def test_the_best_candidate_of_every_row_is_kept(size: tuple[int, int, int]) -> None:
    rows, count, seed = size
    rng = np.random.default_rng(seed)
    errors, scales = rng.integers(0, 4, (count, rows)).astype(float), rng.random((count, rows))
    levels = rng.integers(-3, 3, (count, rows, 5))
    scale, level = keep_best((error, (s, q)) for error, s, q in zip(errors, scales, levels, strict=True))
    chosen = errors.argmin(0)  # of equal ones the first
    np.testing.assert_array_equal(scale, scales[chosen, np.arange(rows)])
    np.testing.assert_array_equal(level, levels[chosen, np.arange(rows)])


@given(SIZES)
def test_ratios_are_tried_on_all_rows(size: tuple[int, int, int]) -> None:
    rows, count, seed = size
    rng = np.random.default_rng(seed)
    errors, ratios = rng.integers(0, 4, (count, rows)).astype(float), rng.random(count)
    found = best_ratios(rows, ratios, lambda ratio, tried: (errors[list(ratios).index(ratio), tried], None))
    np.testing.assert_array_equal(found, ratios[errors.argmin(0)])


def test_settled_rows_are_not_asked_again() -> None:
    asked: list[list[int]] = []

    def errors(ratio: float, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        asked.append(rows.tolist())
        return np.where(rows == 1, 9 - ratio, ratio), None  # the second row improves, the others do not

    found = best_ratios(3, [1.0, 2.0, 3.0, 4.0, 0.5], errors, patience=2)
    assert asked == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1], [1]]
    np.testing.assert_array_equal(found, [1.0, 4.0, 1.0])


def test_rows_without_hope_are_left_and_the_search_ends_with_the_last() -> None:
    asked: list[list[int]] = []

    def errors(ratio: float, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        asked.append(rows.tolist())
        return np.full(len(rows), -ratio), rows > len(asked)

    found = best_ratios(4, [1.0, 2.0, 3.0, 4.0, 5.0], errors)
    assert asked == [[0, 1, 2, 3], [2, 3], [3]]
    np.testing.assert_array_equal(found, [1.0, 1.0, 2.0, 3.0])


def test_errors_that_are_no_numbers_leave_the_whole_range() -> None:
    np.testing.assert_array_equal(
        best_ratios(2, [0.5, 0.2], lambda _, rows: (np.full(len(rows), np.nan), None)), [1.0, 1.0]
    )
