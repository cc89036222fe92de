"""The sweep of GPTQ, and what the methods that use it have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.checks import require_within
from ptq.core.encoding import WeightEncoding
from ptq.core.errors import CalibrationError
from ptq.core.layer_statistics import add_diagonal
from ptq.core.problem import LayerProblem, Needs
from ptq.weights._problem import Candidate, Float, Grid, GroupedProblem
from ptq.weights._solve import Order, solve


@dataclass(frozen=True)
class SecondOrder:
    """A method that sweeps over columns.

    Attributes:
        damping: Added to the diagonal, as a fraction of its mean; keeps the inverse stable on few samples.
        num_sweeps: Sweeps of coordinate descent afterwards; 0 is the plain method.
        order: In which order columns are met.
        block: Columns whose errors reach the later ones in one matrix product; speed only.
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
        """Levels by the method itself."""


def sweep(weight: Float, problem: GroupedProblem, grid: Grid, damping: float, block: int) -> Float:
    """Round the columns of a real weight, each error fed to the columns behind it.

    Args:
        weight: Where to start from. Shape [groups, out, in]. Not modified.
        problem: Second moment and limits.
        grid: Scales of the columns.
        damping: Share of the mean diagonal that is added to it.
        block: Columns between two matrix products.

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
    """Upper Cholesky factor of the inverse; damped more where inputs of very different size leave too few digits."""
    for more in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        inverse = np.linalg.inv(add_diagonal(gram, (damping + more) * mean))
        try:
            return np.asarray(np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1))
        except np.linalg.LinAlgError:
            continue
    raise CalibrationError("the inputs of a layer differ too much in size for this method; take --weights rtn")
