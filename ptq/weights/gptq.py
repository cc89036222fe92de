"""Second-order column sweep with error feedback."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.encoding import AffineEncoding
from ptq.core.problem import LayerProblem, Needs
from ptq.weights._output_error import Float, GroupedProblem, solve


@dataclass(frozen=True)
class Gptq:
    """Round column after column and let the columns still to come absorb each error.

    Source:
        Frantar et al., "GPTQ" (arXiv 2210.17323), Algorithm 1. Differs: one scale per row chosen by output error
        before the sweep; a final coordinate descent.

    Attributes:
        damping: Added to the diagonal, as a fraction of its mean; keeps the inverse stable on few samples.
        num_sweeps: Sweeps of coordinate descent afterwards; 0 is the plain method.
    """

    damping: float = 0.01
    num_sweeps: int = 8
    needs = Needs.GRAM

    def quantize(self, problem: LayerProblem) -> AffineEncoding:
        """Sweep the columns.

        Args:
            problem: Layer with statistics of its input.

        Returns:
            Codes and one scale per row.

        Raises:
            CalibrationError: The layer has no statistics.
        """
        return solve(problem, lambda grouped, scale: _sweep(grouped, scale, self.damping), self.num_sweeps)


def _sweep(problem: GroupedProblem, scale: Float, damping: float) -> Float:
    gram, spec = problem.gram, problem.spec
    mean = np.einsum("gii->g", gram)[:, None, None] / gram.shape[-1]
    inverse = np.linalg.inv(gram + damping * mean * np.eye(gram.shape[-1]))
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    weight = problem.target.copy()
    levels = np.zeros_like(weight)
    for t in range(weight.shape[-1]):
        levels[..., t] = nearest_level(weight[..., t] / scale, spec.qmin, spec.qmax)
        error = (weight[..., t] - levels[..., t] * scale) / upper[:, None, t, t]
        weight[..., t + 1 :] -= error[..., None] * upper[:, None, t, t + 1 :]
    return levels
