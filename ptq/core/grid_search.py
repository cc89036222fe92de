"""Many candidates, one best for every row: how scales are chosen where no formula gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import FloatArray

Float = NDArray[np.float64]
Arrays = tuple[NDArray[Any], ...]

Errors = Callable[[float, NDArray[np.intp]], tuple[FloatArray, NDArray[np.bool_] | None]]
"""(ratio, rows) -> error of each of these rows, and which of them later ratios may still help; None for all."""


def keep_best(candidates: Iterable[tuple[Float, Arrays]]) -> Arrays:
    """Pick row by row from whole candidates.

    Args:
        candidates: At least one: error of every row, and arrays that begin with the axes of the error, such as scales
            [rows] or levels [rows, columns].

    Returns:
        The arrays, each row from the candidate that errs least there; of equal ones the first.

    Example:
        >>> names, errors = np.array([["a", "a"], ["b", "b"]]), np.array([[1, 3], [2, 2]])
        >>> keep_best((error, (name,)) for error, name in zip(errors, names, strict=True))
        (array(['a', 'b'], dtype='<U1'),)
    """
    waiting = iter(candidates)
    least, best = next(waiting)
    for error, values in waiting:
        better = error < least
        least = np.where(better, error, least)
        best = tuple(np.where(_along(better, new), new, old) for new, old in zip(values, best, strict=True))
    return best


def best_ratios(num_rows: int, ratios: Sequence[float] | Float, errors: Errors, patience: int | None = None) -> Float:
    """Find the ratio of least error for every row, and stop asking about rows that are settled.

    Args:
        num_rows: How many.
        ratios: Candidates, in the order in which they are tried.
        errors: What a ratio makes of some rows.
        patience: Ratios in a row without a gain after which a row is settled; None tries all.

    Returns:
        Shape [rows]; 1 where nothing could be compared.
    """
    least, chosen = np.full(num_rows, np.inf), np.ones(num_rows)
    tried, since = np.arange(num_rows), np.zeros(num_rows, np.int64)
    for ratio in ratios:
        error, hopeful = errors(ratio, tried)
        better = error < least[tried]
        chosen[tried] = np.where(better, ratio, chosen[tried])
        least[tried] = np.where(better, error, least[tried])
        since[tried] = np.where(better, 0, since[tried] + 1)
        tried = tried if hopeful is None else tried[hopeful]
        tried = tried if patience is None else tried[since[tried] < patience]
        if not tried.size:
            break
    return chosen


def _along(rows: NDArray[np.bool_], array: NDArray[Any]) -> NDArray[np.bool_]:
    """A mask of rows as it broadcasts against an array that begins with their axes."""
    return rows.reshape(rows.shape + (1,) * (array.ndim - rows.ndim))
