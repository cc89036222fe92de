"""What the solvers share: a layer judged by the error that its integers cause at the output.

With H the second moment of the quantized network's input and G its cross moment with the float one, weights Q err by
J(Q) = tr(Q H Q^T) - 2 tr(Q P^T) + energy, where P = W G^T is what the output asks of each weight; if both networks
agree this is tr((Q - W) H (Q - W)^T).

Arrays are batched over convolution groups: weight [groups, out, in], gram [groups, in, in], scale [groups, out, blocks]
with one block where all inputs of a feature share a scale.
Weights are symmetric, so a code is a level and a level times the scale is the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import IntArray, QuantParams, nearest_level
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.errors import CalibrationError
from ptq.core.layer_statistics import least_squares
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerBlock, PerTensor, QuantSpec
from ptq.core.widths import Widths

Float = NDArray[np.float64]
DEAD = 1e-10  # of the largest second moment: a column that the calibration set never excites
ROOMY = 1.25
"""Times the scale at which the levels of neighbours fit: the first one that is tried."""


@dataclass(frozen=True)
class Grid:
    """The scales of all columns, in the order in which a solver meets them.

    Attributes:
        scale: Exact in float32. Shape [groups, out, blocks].
        block: Which of the scales each column has. Shape [in].
    """

    scale: Float
    block: NDArray[np.intp]

    def along(self) -> Float:
        """A scale for every column. Shape [groups, out, in], or [groups, out, 1] if they are alike."""
        return self.scale if self.scale.shape[-1] == 1 else np.take(self.scale, self.block, -1)

    def at(self, column: int) -> Float:
        """Scales of one column. Shape [groups, out]."""
        return self.scale[..., self.block[column]]


@dataclass(frozen=True)
class Candidate:
    """A weight on a grid.

    Attributes:
        levels: Shape [groups, out, in].
        scale: Shape [groups, out, blocks].
    """

    levels: Float
    scale: Float


@dataclass(frozen=True)
class GroupedProblem:
    """A layer problem as the solvers see it.

    Attributes:
        weight: Float weight. Shape [groups, out, in].
        gram: H. Rows and columns of dead inputs are those of the identity, so that they keep their weights instead
            of being anything at no cost. Shape [groups, in, in].
        cross: G, its dead rows likewise; the same array as `gram` where both networks agree. Shape [groups, in, in].
        energy: Of the float output. Shape [groups, out].
        spec: The grid wished for.
        target: The real weight of least J; the float weight itself where both networks agree. Shape of `weight`.
        target_correlation: P = W G^T. Shape of `weight`.
        lowest: Smallest level of each weight. Shape of `weight`.
        highest: Largest level, likewise.
        block: Which scale each column has. Shape [in].
        widths: Bits of each weight; None is the word length of the spec.
        widest_scale: Scales wide enough, where neighbours share their levels. Shape [groups, out].
    """

    weight: Float
    gram: Float
    cross: Float
    energy: Float
    spec: QuantSpec
    target: Float
    target_correlation: Float
    lowest: Float
    highest: Float
    block: NDArray[np.intp]
    widths: Widths | None
    widest_scale: Float | None = None

    @staticmethod
    def of(problem: LayerProblem) -> GroupedProblem:
        """Arrange a layer by groups.

        Raises:
            CalibrationError: The layer has no statistics; names it.
            ValueError: Scales are shared by blocks of something else than the inputs of ungrouped layers.
        """
        statistics = problem.statistics
        if statistics is None:
            raise CalibrationError(f"layer {problem.name!r} has no input statistics; expected a calibration run")
        if isinstance(problem.spec.granularity, PerBlock) and (len(statistics.gram) > 1 or problem.widths is not None):
            raise ValueError(f"layer {problem.name!r}: scales per block; expected one group and words of one length")
        weight = problem.weight.astype(np.float64).reshape(len(statistics.gram), -1, statistics.gram.shape[-1])
        gram, dead = _revive(statistics.gram)
        cross = gram if statistics.matched else _keep_dead(statistics.cross, gram, dead)
        target_correlation = np.matmul(weight, cross.transpose(0, 2, 1))
        target = weight if statistics.matched else least_squares(weight, gram, target_correlation)
        saturation = problem.saturation
        low, high = problem.limits if saturation is None else (saturation.low, saturation.high)
        low, high = (np.broadcast_to(end, problem.weight.shape).reshape(weight.shape) for end in (low, high))
        widest_scale = None if saturation is None else (saturation.scale * ROOMY).reshape(weight.shape[:2])
        return GroupedProblem(
            weight,
            gram,
            cross,
            statistics.energy,
            problem.spec,
            target,
            target_correlation,
            low,
            high,
            np.arange(weight.shape[-1]) // _block_size(problem.spec, weight.shape[-1]),
            problem.widths,
            widest_scale,
        )

    @property
    def parts(self) -> list[slice]:
        """The columns of each block, as long as they are in their natural order."""
        count = self.weight.shape[-1]
        size = _block_size(self.spec, count)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    @property
    def widest(self) -> Float:
        """Scales to shrink from. Shape [groups, out]."""
        if self.widest_scale is not None:
            return self.widest_scale
        return np.asarray((np.abs(self.target) / self.highest).max(-1))

    def grid(self, scale: Float) -> Grid:
        """Scales [groups, out, blocks] as the columns have them."""
        return Grid(scale, self.block)

    def encode(self, found: Candidate) -> WeightEncoding:
        """A candidate as an encoding of the whole matrix."""
        codes = found.levels.reshape(-1, found.levels.shape[-1]).astype(self.spec.storage_dtype)
        scale = found.scale.reshape(len(codes), -1).astype(np.float32)
        zero: IntArray = np.zeros(scale.shape, self.spec.storage_dtype)
        if isinstance(self.spec.granularity, PerBlock):  # levels reach from qmin - zero to qmax - zero
            ends = self.lowest.reshape(codes.shape)
            codes = codes + (self.spec.qmin - ends).astype(codes.dtype)
            zero = (self.spec.qmin - ends[:, [part.start for part in self.parts]]).astype(codes.dtype)
        else:
            chosen = (0, 0) if isinstance(self.spec.granularity, PerTensor) else (slice(None), 0)
            scale, zero = np.asarray(scale[chosen]), np.asarray(zero[chosen])
        return IntegerWeight.of(codes, QuantParams(scale, zero, self.spec), self.widths)

    def error(self, found: Candidate) -> Float:
        """J per output feature, the constant left out. Shape [groups, out]."""
        values = found.levels * self.grid(found.scale).along()
        return np.asarray(np.einsum("goi,goi->go", np.matmul(values, self.gram) - 2 * self.target_correlation, values))

    def rounded(self, weight: Float, scale: Float) -> Candidate:
        """The nearest levels of a real weight. Shapes [groups, out, in] and [groups, out, blocks]."""
        return Candidate(nearest_level(weight / self.grid(scale).along(), self.lowest, self.highest), scale)


Start = Callable[[GroupedProblem, Grid], Candidate]
"""The method itself: it may choose other scales than those that it is given."""


def _block_size(spec: QuantSpec, count: int) -> int:
    """Neighbouring columns that share a scale; all of them where there are no blocks."""
    return spec.granularity.block_size if isinstance(spec.granularity, PerBlock) else max(count, 1)


def _revive(gram: Float) -> tuple[Float, NDArray[np.bool_]]:
    """The moment with dead inputs put on the diagonal, and which they are. Shape [groups, in]."""
    diagonal = np.einsum("gii->gi", gram)
    dead = diagonal <= DEAD * diagonal.max(initial=0.0)
    if not dead.any():
        return gram, dead  # a copy of a wide layer's moment would be felt
    alive = np.where(dead[:, :, None] | dead[:, None, :], 0.0, gram)
    np.einsum("gii->gi", alive)[dead] = max(float(diagonal.mean()), 1e-30)
    return alive, dead


def _keep_dead(cross: Float, gram: Float, dead: NDArray[np.bool_]) -> Float:
    if not dead.any():
        return cross
    kept = np.where(dead[:, :, None], 0.0, cross)
    np.einsum("gii->gi", kept)[dead] = np.einsum("gii->gi", gram)[dead]
    return kept
