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
        return solve(problem, self._start, self.num_sweeps, self.order, crossed=False)

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
    root = _factor(problem.gram, damping)
    levels, errors = np.zeros_like(weight), np.zeros_like(weight)
    for start in range(0, weight.shape[-1], block):
        stop = min(start + block, weight.shape[-1])
        fed = np.matmul(errors[..., :start], root[:, :start, start:stop])
        for t in range(start, stop):
            steps, column = grid.at(t), weight[..., t]
            wanted = column + fed[..., t - start] / root[:, None, t, t]
            levels[..., t] = nearest_level(wanted / steps, problem.lowest[..., t], problem.highest[..., t])
            errors[..., t] = column - levels[..., t] * steps
            fed[..., t + 1 - start :] += errors[..., t, None] * root[:, None, t, t + 1 : stop]
    return levels


def _factor(gram: Float, damping: float) -> Float:
    """Compute the upper triangular R with R R^T = H; damped more where unlike inputs leave too few digits.

    Errors E of the weights cost |E R|^2, of which column t knows the columns up to t alone: the level of column t that
    costs the least is the one next to w_t + sum_{i<t} E_i R_it / R_tt. That is what GPTQ's inverse feeds forward, and
    neither the inverse nor its factor has to be held. Where nothing is left, as of inputs that are all 0, R is
    diagonal: each column is rounded by itself.
    """
    mean = np.maximum(np.einsum("gii->g", gram)[:, None] / gram.shape[-1], LEAST)
    for more in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        try:
            turned = np.linalg.cholesky(add_diagonal(gram[:, ::-1, ::-1], (damping + more) * mean))
        except np.linalg.LinAlgError:
            continue
        return np.asarray(turned[:, ::-1, ::-1])
    return np.broadcast_to(np.eye(gram.shape[-1]), gram.shape)
