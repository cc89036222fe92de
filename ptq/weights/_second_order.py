"""Sweep of GPTQ, and what the methods that use it have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.arrays import Float
from ptq.core.checks import require_within
from ptq.core.encoding import WeightEncoding
from ptq.core.layer_statistics import add_diagonal
from ptq.core.problem import LayerProblem, Needs
from ptq.weights._problem import Candidate, Grid, GroupedProblem
from ptq.weights._solve import Order, solve

LEAST = 1e-30
"""Mean second moment below which inputs count as 0."""


@dataclass(frozen=True)
class SecondOrder:
    """Base of methods that sweep over columns.

    Attributes:
        damping: Fraction of the diagonal's mean that is added to it; keeps the inverse stable on few samples.
        num_sweeps: Sweeps of coordinate descent afterwards; 0 is the plain method.
        order: Order in which columns are met.
        block: Number of columns whose errors reach the later ones in one matrix product; speed only.
    """

    damping: float = 0.01
    num_sweeps: int = 8
    order: Order = "activation"
    block: int = 64
    needs = Needs.MOMENTS
    independent_rows = True

    def __post_init__(self) -> None:
        require_within(self, damping=(0, 1e6), num_sweeps=(0, 10_000), block=(1, 1 << 20))

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Sweep the columns.

        Args:
            problem: Layer with statistics of its input.

        Returns:
            Codes and one scale per row.

        Raises:
            CalibrationError: The layer has no statistics.
        """
        return solve(problem, self._start, self.num_sweeps, self.order)

    @abstractmethod
    def _start(self, problem: GroupedProblem, grid: Grid) -> Candidate:
        """Find levels by the method itself."""


def sweep(weight: Float, problem: GroupedProblem, grid: Grid, damping: float, block: int) -> Float:
    """Round the columns of a real weight, each error fed to the columns behind it.

    Args:
        weight: Real weight to start from. Shape [groups, out, in]. Not modified.
        problem: Second moment and limits.
        grid: Scales of the columns.
        damping: Share of the mean diagonal that is added to it.
        block: Number of columns between two matrix products.

    Returns:
        Levels. Shape of `weight`.
    """
    gram = problem.gram
    mean = np.einsum("gii->g", gram)[:, None] / gram.shape[-1]
    upper = _factor(gram, mean, damping)
    weight = weight.copy()
    levels, errors = np.zeros_like(weight), np.zeros_like(weight)
    for start in range(0, weight.shape[-1], block):
        stop = min(start + block, weight.shape[-1])
        for t in range(start, stop):
            steps = grid.at(t)
            levels[..., t] = nearest_level(weight[..., t] / steps, problem.lowest[..., t], problem.highest[..., t])
            errors[..., t] = (weight[..., t] - levels[..., t] * steps) / upper[:, None, t, t]
            weight[..., t + 1 : stop] -= errors[..., t, None] * upper[:, None, t, t + 1 : stop]
        weight[..., stop:] -= np.matmul(errors[..., start:stop], upper[:, start:stop, stop:])
    return levels


def _factor(gram: Float, mean: Float, damping: float) -> Float:
    """Compute the upper Cholesky factor of the inverse; damped more where unlike inputs leave too few digits.

    Where nothing is left, as of inputs that are all 0, it is diagonal: each column is rounded by itself.
    """
    mean = np.maximum(mean, LEAST)
    for more in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        inverse = np.linalg.inv(add_diagonal(gram, (damping + more) * mean))
        try:
            return np.asarray(np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1))
        except np.linalg.LinAlgError:
            continue
    return np.broadcast_to(np.eye(gram.shape[-1]), gram.shape)
