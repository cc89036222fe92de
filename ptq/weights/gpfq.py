"""Greedy path following."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.encoding import AffineEncoding
from ptq.core.problem import LayerProblem, Needs
from ptq.weights._output_error import Float, GroupedProblem, solve


@dataclass(frozen=True)
class Gpfq:
    """Quantize column after column, each rounding what the columns before it left over at the output.

    Source:
        Zhang, Zhou, Saab, "Post-training quantization for neural networks with provable guarantees" (arXiv 2201.11113),
        in the Gram form: with S = W tril(G)^T the quantity to round is z_t = (S_t - sum_{j<t} G_tj q_j) / G_tt.
        Differs: one scale per row instead of one per layer, chosen by output error; levels fit the word length; inputs
        that the calibration set never excites keep their weight; a final coordinate descent.

    Attributes:
        num_sweeps: Sweeps of coordinate descent afterwards; 0 is the plain method.
        block: Columns handled between two matrix products; speed only.
    """

    num_sweeps: int = 8
    block: int = 64
    needs = Needs.GRAM

    def quantize(self, problem: LayerProblem) -> AffineEncoding:
        """Follow the path.

        Args:
            problem: Layer with statistics of its input.

        Returns:
            Codes and one scale per row.

        Raises:
            CalibrationError: The layer has no statistics.
        """
        return solve(problem, lambda grouped, scale: _follow(grouped, scale, self.block), self.num_sweeps)


def _follow(problem: GroupedProblem, scale: Float, block: int) -> Float:
    """The recursion in blocks: finished columns enter by one product, the rest of a block column by column."""
    gram, spec = problem.gram, problem.spec
    rest = np.matmul(problem.weight, np.tril(problem.cross).transpose(0, 2, 1))
    values = np.zeros_like(rest)
    for start in range(0, rest.shape[-1], block):
        stop = min(start + block, rest.shape[-1])
        rest[..., start:stop] -= np.matmul(values[..., :start], gram[:, start:stop, :start].transpose(0, 2, 1))
        for t in range(start, stop):
            done = np.einsum("gob,gb->go", values[..., start:t], gram[:, t, start:t])
            target = (rest[..., t] - done) / gram[:, None, t, t]
            values[..., t] = nearest_level(target / scale, spec.qmin, spec.qmax) * scale
    return nearest_level(values / scale[..., None], spec.qmin, spec.qmax)
