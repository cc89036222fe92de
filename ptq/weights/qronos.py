"""Correct the past, shape the future."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.layer_statistics import add_diagonal
from ptq.weights._problem import Candidate, Grid, GroupedProblem
from ptq.weights._second_order import SecondOrder, sweep


@dataclass(frozen=True)
class Qronos(SecondOrder):
    """Round the first column so that it undoes what earlier layers did, refit all others to it, then sweep them.

    Source:
        Zhang et al., "Qronos: correcting the past by shaping the future in post-training quantization"
        (arXiv 2505.11695): q_0 = round((P_0 - sum_{j>0} H_0j w_j) / H_00) with P = W G^T; the other columns become the
        least-squares solution given q_0, and errors diffuse as in GPTQ. Differs: scales by output error, a final
        coordinate descent.
    """

    def _start(self, problem: GroupedProblem, grid: Grid) -> Candidate:
        gram, steps = problem.gram, grid.at(0)
        others = np.einsum("goi,gi->go", problem.weight[..., 1:], gram[:, 0, 1:])
        best = (problem.target_correlation[..., 0] - others) / gram[:, None, 0, 0] / steps
        first = nearest_level(best, problem.lowest[..., 0], problem.highest[..., 0])
        if gram.shape[-1] == 1:
            return Candidate(first[..., None], grid.scale)
        rest = gram[:, 1:, 1:]
        strength = self.damping * np.einsum("gii->g", gram)[:, None] / gram.shape[-1]
        asked = problem.target_correlation[..., 1:] + strength[:, None] * problem.weight[..., 1:]
        asked = asked - (first * steps)[..., None] * gram[:, None, 0, 1:]
        refitted = np.linalg.solve(add_diagonal(rest, strength), asked.transpose(0, 2, 1)).transpose(0, 2, 1)
        ahead = _without_first(problem)
        levels = sweep(refitted, ahead, ahead.grid(grid.scale), self.damping, self.block)
        return Candidate(np.concatenate([first[..., None], levels], axis=-1), grid.scale)


def _without_first(problem: GroupedProblem) -> GroupedProblem:
    return replace(
        problem,
        weight=problem.weight[..., 1:],
        gram=problem.gram[:, 1:, 1:],
        cross=problem.cross[:, 1:, 1:],
        target=problem.target[..., 1:],
        target_correlation=problem.target_correlation[..., 1:],
        lowest=problem.lowest[..., 1:],
        highest=problem.highest[..., 1:],
        block=problem.block[1:],
    )
