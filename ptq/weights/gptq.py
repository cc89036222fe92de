"""Second-order column sweep with error feedback."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.weights._problem import Candidate, Grid, GroupedProblem
from ptq.weights._second_order import SecondOrder, sweep


@dataclass(frozen=True)
class Gptq(SecondOrder):
    """Round column after column and let the columns still to come absorb each error.

    Source:
        Frantar et al., "GPTQ" (arXiv 2210.17323), Algorithm 1. Differs: starts from the weights that best reproduce
        the float output on the quantized input; one scale per row chosen by output error before the sweep; a final
        coordinate descent.
    """

    def _start(self, problem: GroupedProblem, grid: Grid) -> Candidate:
        return Candidate(sweep(problem.target, problem, grid, self.damping, self.block), grid.scale)
