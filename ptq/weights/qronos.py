"""Correct the past, shape the future."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.checks import require_within
from ptq.core.encoding import WeightEncoding
from ptq.core.layer_statistics import add_diagonal
from ptq.core.problem import LayerProblem, Needs
from ptq.weights._output_error import Float, GroupedProblem, Order, at, solve
from ptq.weights.gptq import sweep


@dataclass(frozen=True)
class Qronos:
    """Round the first column so that it undoes what earlier layers did, refit all others to it, then sweep them.

    Source:
        Zhang et al., "Qronos: correcting the past by shaping the future in post-training quantization"
        (arXiv 2505.11695): q_0 = round((P_0 - sum_{j>0} H_0j w_j) / H_00) with P = W G^T; the other columns become the
        least-squares solution given q_0, and errors diffuse as in GPTQ. Differs: scales by output error, a final
        coordinate descent.

    Attributes:
        damping: Added to the diagonal, as a fraction of its mean.
        num_sweeps: Sweeps of coordinate descent afterwards; 0 is the plain method.
        order: In which order columns are met.
        block: Columns whose errors reach the later ones in one matrix product; speed only.
    """

    damping: float = 0.01
    num_sweeps: int = 8
    order: Order = "activation"
    block: int = 64
    needs = Needs.GRAM
    independent_rows = True

    def __post_init__(self) -> None:
        require_within(self, damping=(0, 1e6), num_sweeps=(0, 10_000), block=(1, 1 << 20))

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Round, refit, sweep.

        Args:
            problem: Layer with statistics of its input.

        Returns:
            Codes and one scale per row.

        Raises:
            CalibrationError: The layer has no statistics.
        """
        return solve(problem, self._start, self.num_sweeps, self.order)

    def _start(self, problem: GroupedProblem, scale: Float) -> Float:
        gram = problem.gram
        others = np.einsum("goi,gi->go", problem.weight[..., 1:], gram[:, 0, 1:])
        best = (problem.target_correlation[..., 0] - others) / gram[:, None, 0, 0] / at(scale, 0)
        first = nearest_level(best, problem.lowest[..., 0], problem.highest[..., 0])
        if gram.shape[-1] == 1:
            return first[..., None]
        rest = gram[:, 1:, 1:]
        strength = self.damping * np.einsum("gii->g", gram)[:, None] / gram.shape[-1]
        asked = problem.target_correlation[..., 1:] + strength[:, None] * problem.weight[..., 1:]
        asked = asked - (first * at(scale, 0))[..., None] * gram[:, None, 0, 1:]
        refitted = np.linalg.solve(add_diagonal(rest, strength), asked.transpose(0, 2, 1))
        steps = scale if scale.ndim == 2 else scale[..., 1:]
        levels = sweep(refitted.transpose(0, 2, 1), _without_first(problem), steps, self.damping, self.block)
        return np.concatenate([first[..., None], levels], axis=-1)


def _without_first(problem: GroupedProblem) -> GroupedProblem:
    return GroupedProblem(
        problem.weight[..., 1:],
        problem.gram[:, 1:, 1:],
        problem.cross[:, 1:, 1:],
        problem.energy,
        problem.spec,
        problem.target[..., 1:],
        problem.target_correlation[..., 1:],
        problem.lowest[..., 1:],
        problem.highest[..., 1:],
        None,
    )
