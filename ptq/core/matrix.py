"""Weights of linear layers as matrices [out_features, in_features], whose rows can be solved independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Axes of a layer's weight in the graph.

    Attributes:
        out_axis: Axis of the output features: 0 for Conv and Gemm(transB=1), 1 for MatMul and plain Gemm.
        shape: Shape in the graph.
    """

    out_axis: int
    shape: tuple[int, ...]

    def to_matrix(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return the graph's weight as [out, in]; columns of Conv run over (channel, kernel...) in C order."""
        return np.moveaxis(tensor, self.out_axis, 0).reshape(self.shape[self.out_axis], -1)

    def to_tensor(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Return a matrix [out, in] as the graph's weight; the inverse of `to_matrix`."""
        rest = [extent for axis, extent in enumerate(self.shape) if axis != self.out_axis]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(-1, *rest), 0, self.out_axis))
