"""Coordinate descent on the error at a layer's output."""

from __future__ import annotations

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.spec import PerTensor
from ptq.weights._problem import Candidate, Float, GroupedProblem


class Descent:
    """A candidate on its way down. J never rises.

    Args:
        problem: The layer.
        start: Where to begin. Not modified.
    """

    def __init__(self, problem: GroupedProblem, start: Candidate) -> None:
        self._problem = problem
        self._levels, self._scale = start.levels.copy(), start.scale.copy()
        values = start.levels * problem.grid(start.scale).along()
        self._residual: Float = np.matmul(values, problem.gram) - problem.target_correlation

    @property
    def found(self) -> Candidate:
        """Where it has got to."""
        return Candidate(self._levels.copy(), self._scale.copy())

    @property
    def residual(self) -> Float:
        """R = Q H - P, half the gradient of J. Shape of the weight."""
        return self._residual

    def polish(self, num_sweeps: int) -> None:
        """Move one column at a time to its best level, given all others.

        With R = Q H - P the best value of column t is q_t - R_t / H_tt; its nearest level is the best level because J
        is a parabola in it.

        Args:
            num_sweeps: Passes over all columns; ends early when nothing moves.

        Cost:
            O(out * in^2) per sweep, less once few rows move.
        """
        problem, levels, residual = self._problem, self._levels, self._residual
        grid, gram = problem.grid(self._scale), problem.gram
        for _ in range(num_sweeps):
            moved = False
            for t in range(levels.shape[-1]):
                steps = grid.at(t)
                step = residual[..., t] / gram[:, None, t, t] / steps
                best = nearest_level(levels[..., t] - step, problem.lowest[..., t], problem.highest[..., t])
                change = best - levels[..., t]
                groups, rows = np.nonzero(change)
                if len(rows):
                    levels[groups, rows, t] = best[groups, rows]
                    residual[groups, rows] += (change * steps)[groups, rows, None] * gram[groups, t]
                    moved = True
            if not moved:
                break

    def refit(self) -> None:
        """Take the scale of least J for the present levels, where it is positive and better.

        Blocks have theirs fitted one after the other, each given all before it.
        """
        if isinstance(self._problem.spec.granularity, PerTensor):
            return
        for index, part in enumerate(self._problem.parts):
            levels, old = self._levels[..., part], self._scale[..., index]
            moved = np.matmul(levels, self._problem.gram[:, part])
            energy = np.einsum("goi,goi->go", moved[..., part], levels)
            slope = np.einsum("goi,goi->go", self._residual[..., part], levels)
            best = (old - slope / np.where(energy > 0, energy, 1.0)).astype(np.float32).astype(np.float64)
            better = (energy > 0) & (best > 0) & ((best - old) * ((best - old) * energy + 2 * slope) < 0)
            best = np.where(better, best, old)
            self._residual += (best - old)[..., None] * moved
            self._scale[..., index] = best
