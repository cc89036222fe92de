"""Frame that all solvers share: scales, the method's own levels, a descent, and rounding where that was better."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.core.encoding import WeightEncoding
from ptq.core.grid_search import keep_best
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerBlock
from ptq.weights._descent import Descent
from ptq.weights._grid_search import best_grid
from ptq.weights._problem import Candidate, GroupedProblem, Start

Order = Literal["natural", "norm", "activation"]
ROWS_AT_ONCE = 256
"""Rows of a matrix that are put into another order at once."""

SWEEPS_PER_FIT = 2
"""Sweeps of coordinate descent between two fits of the scales of blocks: nearly all that sweeps gain, two do."""


def solve(
    problem: LayerProblem, start: Start, num_sweeps: int, order: Order = "natural", *, crossed: bool = True
) -> WeightEncoding:
    """Choose scales, find levels by the method, polish them, refit the scales, and keep the best, as every solver does.

    Args:
        problem: Layer with statistics of its input.
        start: Method that finds levels.
        num_sweeps: Sweeps of coordinate descent; 0 also leaves the scales alone.
        order: Order in which the method meets the columns.
        crossed: Whether the method looks at the cross moment itself, and not only at what it asks of weights.

    Returns:
        Codes and one scale per row.

    Raises:
        CalibrationError: The layer has no statistics.
    """
    grouped = GroupedProblem.of(problem)
    grouped, scale = best_grid(grouped if crossed else replace(grouped, cross=grouped.gram))
    found = in_order(grouped, scale, start, order)
    if num_sweeps:
        rounded = grouped.rounded(grouped.weight, found.scale)  # greed can lose; rounding then stays
        settled = settle(grouped, found, num_sweeps)
        found = Candidate(*keep_best((grouped.error(each), (each.levels, each.scale)) for each in (settled, rounded)))
    return grouped.encode(found)


def settle(problem: GroupedProblem, start: Candidate, num_sweeps: int) -> Candidate:
    """Find levels for the scales and scales for the levels in turns.

    The one scale of a row is fitted once, between two polishings; the many of blocks gain more, and are fitted every
    few sweeps.

    Args:
        problem: The layer.
        start: Candidate to begin with.
        num_sweeps: Sweeps of coordinate descent, at least 1: before the fit and behind it; for blocks altogether.

    Returns:
        A candidate of lower or equal J.
    """
    in_blocks = isinstance(problem.spec.granularity, PerBlock)
    sweeps = min(num_sweeps, SWEEPS_PER_FIT) if in_blocks else num_sweeps
    descent = Descent(problem, start)
    descent.polish(sweeps)
    for _ in range(-(-num_sweeps // sweeps) - 1 if in_blocks else 1):
        descent.refit()
        descent.polish(sweeps)
    return descent.found


def in_order(problem: GroupedProblem, scale: Float, start: Start, order: Order) -> Candidate:
    """Let a method meet the columns in another order; its levels come back in the natural one.

    Args:
        problem: The layer.
        scale: Scales. Shape [groups, out, blocks].
        start: Method that finds levels.
        order: `activation` takes the columns of the largest inputs first, `norm` those that contribute the most to
            the output, counting the weights.
    """
    if order == "natural":
        return start(problem, problem.grid(scale))
    energy = np.einsum("gii->gi", problem.gram)
    if order == "norm":
        energy = energy * np.square(problem.weight).sum(1)
    columns = np.argsort(-energy, axis=1, kind="stable")
    wide, gram = columns[:, None], _turned(problem.gram, columns)
    turned = replace(
        problem,
        gram=gram,
        cross=gram if problem.cross is problem.gram else _turned(problem.cross, columns),
        weight=np.take_along_axis(problem.weight, wide, 2),
        target=np.take_along_axis(problem.target, wide, 2),
        target_correlation=np.take_along_axis(problem.target_correlation, wide, 2),
        lowest=np.take_along_axis(problem.lowest, wide, 2),
        highest=np.take_along_axis(problem.highest, wide, 2),
        block=problem.block[columns[0]],  # groups, whose orders differ, have no blocks
    )
    found = start(turned, turned.grid(scale))
    natural = np.empty_like(found.levels)
    np.put_along_axis(natural, np.broadcast_to(wide, natural.shape), found.levels, 2)
    return Candidate(natural, found.scale)


def _turned(matrices: Float, columns: NDArray[np.intp]) -> Float:
    """Put rows and columns of square matrices [groups, in, in] into another order, each group into its own."""
    turned = np.empty_like(matrices)
    for matrix, order, into in zip(matrices, columns, turned, strict=True):
        for start in range(0, len(order), ROWS_AT_ONCE):  # each a copy of that many rows, not of the matrix
            part = slice(start, start + ROWS_AT_ONCE)
            into[part] = matrix[np.ix_(order[part], order)]
    return turned
