"""Second moments of one linear layer's input: they decide how much an error in its weight costs.

The float network gives the layer rows X [positions, in] and the layer computes X W^T; the quantized network, whose
earlier layers already err, gives it rows X~ instead. Weights Q then err at the layer's output by

    sum |X~ Q^T - X W^T|^2 = tr(Q H Q^T) - 2 tr(Q G W^T) + sum |X W^T|^2,   H = X~^T X~ (`gram`),   G = X~^T X (`cross`)

so every solver that minimizes the output error needs H and G alone: memory is in^2, whatever the number of samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float

ROWS_AT_ONCE = 64
"""Rows of a matrix that are changed at once where it is changed in place."""

DAMPING = 0.01  # of the mean second moment: how strongly a least-squares weight is held to the float one


@dataclass(frozen=True)
class LayerStatistics:
    """Moments of a layer's input, one matrix per convolution group. All are sums over positions, float64.

    Attributes:
        gram: Sum of x~ x~^T. Shape [groups, in, in].
        cross: Sum of x~ x^T; the same array as `gram` where both networks agree. Shape [groups, in, in].
        total: Sum of x~. Shape [groups, in].
        float_total: Sum of x. Shape [groups, in].
        energy: Sum of the squared float outputs (W x)^2. Shape [groups, out].
        count: Number of positions.
    """

    gram: Float
    cross: Float
    total: Float
    float_total: Float
    energy: Float
    count: int

    @staticmethod
    def of(
        rows: NDArray[Any], weight: NDArray[Any], float_rows: NDArray[Any] | None = None, *, wide: bool = True
    ) -> LayerStatistics:
        """Compute the statistics of input rows.

        Args:
            rows: What the quantized network gives the layer. Shape [groups, positions, in]. float32 rows are
                multiplied in float32, which is twice as fast; sums over batches are float64.
            weight: Float weight. Shape [groups * out, in].
            float_rows: What the float network gives it at the same positions; default: the same.
            wide: Give matrices in float64; else as they were multiplied, for a `MomentSum` to widen them as it adds.
        """
        origin = rows if float_rows is None else float_rows
        turned = rows.transpose(0, 2, 1)
        kind = np.float64 if wide else rows.dtype
        gram = np.matmul(turned, rows).astype(kind, copy=False)
        cross = gram if float_rows is None else np.matmul(turned, origin).astype(kind, copy=False)
        by_group = weight.reshape(len(rows), -1, rows.shape[-1]).transpose(0, 2, 1)
        energy = np.square(np.matmul(origin, by_group)).sum(1, dtype=np.float64)
        total = rows.sum(1, dtype=np.float64)
        float_total = total if float_rows is None else origin.sum(1, dtype=np.float64)
        return LayerStatistics(gram, cross, total, float_total, energy, rows.shape[1])

    @property
    def matched(self) -> bool:
        """Whether both networks give the layer the same input."""
        return self.cross is self.gram

    def widened(self) -> LayerStatistics:
        """Return the statistics with matrices of float64."""
        gram = self.gram.astype(np.float64, copy=False)
        return replace(self, gram=gram, cross=gram if self.matched else self.cross.astype(np.float64, copy=False))

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """Add two sums; float addition, so a fixed order gives fixed bits."""
        gram = self.gram + other.gram
        both = self.matched and other.matched
        return LayerStatistics(
            gram,
            gram if both else self.cross + other.cross,
            self.total + other.total,
            self.float_total + other.float_total,
            self.energy + other.energy,
            self.count + other.count,
        )

    def best_weight(self, weight: NDArray[Any]) -> Float:
        """Return the real weights of least output error. Shape [groups * out, in]."""
        if self.matched or not self.count:
            return weight.astype(np.float64)
        target_correlation = self.target_correlation(weight)
        return least_squares(
            weight.reshape(target_correlation.shape).astype(np.float64), self.gram, target_correlation
        ).reshape(weight.shape)

    def target_correlation(self, weight: NDArray[Any]) -> Float:
        """Return W G^T: what the output asks of each weight.

        Args:
            weight: Float weight. Shape [groups * out, in].

        Returns:
            Shape [groups, out, in].
        """
        by_group = weight.reshape(len(self.gram), -1, self.gram.shape[-1]).astype(np.float64)
        return np.asarray(np.matmul(by_group, self.cross.transpose(0, 2, 1)))

    def relative_error(self, quantized: NDArray[Any], target_correlation: Float) -> float:
        """Return the energy of the error at the layer's output over that of the float output.

        Args:
            quantized: Weights that the quantized network uses. Shape [groups * out, in].
            target_correlation: Of the float weight, see `target_correlation`.
        """
        q = quantized.reshape(target_correlation.shape).astype(np.float64)
        error = np.einsum("goi,goi->", np.matmul(q, self.gram) - 2 * target_correlation, q) + self.energy.sum()
        return float(max(error, 0.0) / max(self.energy.sum(), 1e-300))

    def judge(self, weight: NDArray[Any]) -> Callable[[Float], float]:
        """Return a function from weights of the quantized network to their relative error.

        Args:
            weight: Float weight. Shape [groups * out, in].
        """
        return functools.partial(self.relative_error, target_correlation=self.target_correlation(weight))

    def along(self, weight: NDArray[Any]) -> Callable[[Float], tuple[float, float]]:
        """Return a function from quantized weights to the sum of products of their outputs with the float ones.

        Args:
            weight: Float weight. Shape [groups * out, in].

        Returns:
            The function; it also gives the energy of the float outputs.
        """
        asked, signal = self.target_correlation(weight), float(self.energy.sum())
        return lambda quantized: (float((quantized.reshape(asked.shape) * asked).sum()), signal)

    def centered(self, weight: NDArray[Any]) -> LayerStatistics:
        """Return the moments about the means: what is left to the weight where a bias takes up every mean error.

        Args:
            weight: Float weight. Shape [groups * out, in].

        Returns:
            Central moments; totals are 0. Their matrices are those of these moments, written over.
        """
        count = max(self.count, 1)
        gram = _less_outer(self.gram, self.total, self.total, count)
        cross = gram if self.matched else _less_outer(self.cross, self.total, self.float_total, count)
        by_group = weight.reshape(len(gram), -1, gram.shape[-1]).astype(np.float64)
        mean_output = np.einsum("goi,gi->go", by_group, self.float_total)
        energy = np.maximum(self.energy - np.square(mean_output) / count, 0.0)
        none = np.zeros_like(self.total)
        return LayerStatistics(gram, cross, none, none, energy, self.count)


def _less_outer(matrices: Float, left: Float, right: Float, count: int) -> Float:
    """Take left right^T / count off square matrices, in place, some rows at a time."""
    for start in range(0, matrices.shape[1], ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        matrices[:, part] -= left[:, part, None] * right[:, None] / count
    return matrices


def least_squares(weight: Float, gram: Float, target_correlation: Float) -> Float:
    """Solve for the real weights that err least at the output, held a little to the float ones.

    Args:
        weight: W. Shape [groups, out, in].
        gram: H. Shape [groups, in, in].
        target_correlation: P = W G^T. Shape of `weight`.

    Returns:
        argmin over T of tr(T H T^T) - 2 tr(T P^T) + damping |T - W|^2. Shape of `weight`.
    """
    strength = np.maximum(DAMPING * np.einsum("gii->g", gram)[:, None] / gram.shape[-1], 1e-30)  # dead groups
    asked = (target_correlation + strength[:, None] * weight).transpose(0, 2, 1)
    return np.linalg.solve(add_diagonal(gram, strength), asked).transpose(0, 2, 1)


class MomentSum:
    """A sum of statistics under construction: what `merge` gives, without new matrices for every part."""

    def __init__(self) -> None:
        self._sum: LayerStatistics | None = None

    def add(self, part: LayerStatistics) -> None:
        """Add the statistics of a part. Its matrices belong to the sum from now on."""
        if self._sum is None:
            self._sum = part.widened()
            return
        if self._sum.matched != part.matched:
            self._sum = self._sum.merge(part)
            return
        whole = self._sum
        np.add(whole.gram, part.gram, out=whole.gram)
        if not whole.matched:
            np.add(whole.cross, part.cross, out=whole.cross)
        small = whole.total + part.total, whole.float_total + part.float_total, whole.energy + part.energy
        self._sum = LayerStatistics(whole.gram, whole.cross, *small, whole.count + part.count)

    def value(self) -> LayerStatistics:
        """Return the sum of at least one part; the next `add` changes it."""
        if self._sum is None:
            raise ValueError("nothing was added; expected at least one part")
        return self._sum


def output_error(error: Float, gram: Float) -> Float:
    """Compute the energy that weight errors add to the layer's output when both networks give it the same input.

    Args:
        error: Weight errors. Shape [groups, out, in].
        gram: Shape [groups, in, in].

    Returns:
        d G d^T per output feature. Shape [groups, out].
    """
    return np.asarray(np.einsum("goi,goi->go", np.matmul(error, gram), error))


def add_diagonal(matrices: Float, values: Float) -> Float:
    """Return copies of square matrices with something added to their diagonals.

    Args:
        matrices: Shape [groups, in, in].
        values: Shape [groups, in] or [groups, 1].
    """
    copy = matrices.copy()
    np.einsum("gii->gi", copy)[...] += values
    return copy
