"""Greedy path following."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ptq.core.affine import nearest_level
from ptq.core.checks import require_within
from ptq.core.encoding import WeightEncoding
from ptq.core.errors import RecipeError
from ptq.core.grid_search import keep_best
from ptq.core.problem import LayerProblem, Needs
from ptq.weights._problem import Candidate, Float, Grid, GroupedProblem
from ptq.weights._solve import Order, in_order, solve

PAPER_RADIUS = 1.16
"""The authors' factor on the mean of the rows' largest weights."""

STEPS = np.geomspace(0.7, 1.4, 12)


@dataclass(frozen=True)
class Gpfq:
    """Quantize column after column, each rounding what the columns before it left over at the output.

    Source:
        Zhang, Zhou, Saab, "Post-training quantization for neural networks with provable guarantees" (arXiv 2201.11113),
        in the Gram form: z_t = (sum_{j<=t} G_tj w_j - sum_{j<t} H_tj q_j) / H_tt is rounded, with the moments H and G.
        Stochastic rounding: Zhang, Saab, "SPFQ" (arXiv 2309.10975), without its first phase.
        Differs: one scale per row instead of one per layer, chosen by output error; levels fit the word length; inputs
        that the calibration set never excites keep their weight; a final coordinate descent.

    Attributes:
        num_sweeps: Sweeps of coordinate descent afterwards; 0 is the plain method. None follow sparse or stochastic
            rounding, which a descent to the nearest levels would undo.
        order: In which order columns are met.
        step: `range` takes the scale that suits rounding, `search` the one of a dozen around it that suits the path.
        sparse: `soft` shrinks what is rounded by `threshold` towards 0; `hard` sets it to 0 within `threshold`. (The
            authors' hard levels start at the threshold, which no affine grid can store; here the rest is rounded.)
        threshold: In steps.
        stochastic: Round up or down at random, without bias.
        alphabet: `storage` fits the word length; `paper` is the authors': one step per layer and 2^b + 1 levels, which
            need b + 1 bits and are stored so.
        seed: Of the stochastic rounding.
        block: Columns handled between two matrix products; speed only.
    """

    num_sweeps: int = 8
    order: Order = "activation"
    step: Literal["range", "search"] = "range"
    sparse: Literal["none", "soft", "hard"] = "none"
    threshold: float = 0.6
    stochastic: bool = False
    alphabet: Literal["storage", "paper"] = "storage"
    seed: int = 0
    block: int = 64
    needs = Needs.MOMENTS

    def __post_init__(self) -> None:
        require_within(self, threshold=(0, 1e6), seed=(0, 2**63), num_sweeps=(0, 10_000), block=(1, 1 << 20))

    @property
    def independent_rows(self) -> bool:
        """Not where chance runs through all rows, or one step is chosen for all."""
        return not self.stochastic and self.alphabet == "storage"

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Follow the path.

        Args:
            problem: Layer with statistics of its input.

        Returns:
            Codes and one scale per row.

        Raises:
            CalibrationError: The layer has no statistics.
            RecipeError: The paper's alphabet was asked for at 8 bits, where its codes fit no byte.
        """
        if self.alphabet == "paper":
            return self._on_paper(problem)
        plain = self.sparse == "none" and not self.stochastic
        return solve(problem, self._start, self.num_sweeps if plain else 0, self.order)

    def _start(self, problem: GroupedProblem, grid: Grid) -> Candidate:
        if self.step == "range":
            return self._follow(problem, grid)
        around = [(grid.scale * ratio).astype(np.float32).astype(np.float64) for ratio in STEPS]
        found = (self._follow(problem, problem.grid(scale)) for scale in (grid.scale, *around))
        return Candidate(*keep_best((problem.error(each), (each.levels, each.scale)) for each in found))

    def _on_paper(self, problem: LayerProblem) -> WeightEncoding:
        bits = problem.spec.num_bits
        if bits == 8:
            raise RecipeError("gpfq: the paper's 8-bit alphabet has 257 levels, which fit no byte; expected bits <= 7")
        grouped = GroupedProblem.of(replace(problem, widths=None))  # longer words would hold the same few levels
        radius = PAPER_RADIUS * float(np.abs(problem.weight).max(1).mean())
        step = float(np.float32(max(radius, 1e-30) / (1 << (bits - 1))))
        half = 1 << (bits - 1)
        wide = replace(
            grouped,
            spec=replace(grouped.spec, num_bits=bits + 1, narrow_range=False),
            lowest=np.full_like(grouped.weight, -half),
            highest=np.full_like(grouped.weight, half),
        )
        scale = np.full((*grouped.weight.shape[:2], 1), step)
        return wide.encode(in_order(wide, scale, self._follow, self.order))

    def _follow(self, problem: GroupedProblem, grid: Grid) -> Candidate:
        """The recursion in blocks: finished columns enter by one product, the rest of a block column by column."""
        gram = problem.gram
        random = np.random.default_rng(self.seed)
        rest = np.matmul(problem.weight, np.tril(problem.cross).transpose(0, 2, 1))
        values = np.zeros_like(rest)
        levels: Float = np.zeros_like(rest)
        for start in range(0, rest.shape[-1], self.block):
            stop = min(start + self.block, rest.shape[-1])
            rest[..., start:stop] -= np.matmul(values[..., :start], gram[:, start:stop, :start].transpose(0, 2, 1))
            for t in range(start, stop):
                done = np.einsum("gob,gb->go", values[..., start:t], gram[:, t, start:t])
                steps = grid.at(t)
                target = (rest[..., t] - done) / gram[:, None, t, t] / steps
                adjusted = self._adjust(target, random)
                levels[..., t] = nearest_level(adjusted, problem.lowest[..., t], problem.highest[..., t])
                values[..., t] = levels[..., t] * steps
        return Candidate(levels, grid.scale)

    def _adjust(self, target: Float, random: np.random.Generator) -> Float:
        """What is rounded to the nearest level instead of the target itself, in steps."""
        if self.sparse == "soft":
            target = np.sign(target) * np.maximum(np.abs(target) - self.threshold, 0.0)
        elif self.sparse == "hard":
            target = np.where(np.abs(target) > self.threshold, target, 0.0)
        return np.asarray(target + random.random(target.shape) - 0.5) if self.stochastic else target
