"""What was seen at one linear layer's input: the second moment that decides how much an error in its weight costs.

With the input rows X [positions, in] the layer computes X W^T, so weights W + D err by

    sum |X D^T|^2 = tr(D G D^T),   G = X^T X   (`gram`)

and every solver that minimises the output error needs G alone: memory is in^2, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LayerStatistics:
    """Second moment of a layer's input, one matrix per convolution group.

    Attributes:
        gram: Sum over positions of x x^T, float64. Shape [groups, in, in].
        count: Number of positions summed.
    """

    gram: NDArray[np.float64]
    count: int

    @staticmethod
    def of(rows: NDArray[Any]) -> LayerStatistics:
        """Statistics of input rows.

        Args:
            rows: Shape [groups, positions, in]. float32 rows are multiplied in float32, which is twice as fast; the
                sum over samples is float64.
        """
        return LayerStatistics(np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64), rows.shape[1])

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """Add two sums; float addition, so a fixed order gives fixed bits."""
        return LayerStatistics(self.gram + other.gram, self.count + other.count)


def output_error(error: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Energy that weight errors add to the layer's output.

    Args:
        error: Weight errors. Shape [groups, out, in].
        gram: Shape [groups, in, in].

    Returns:
        d G d^T per output feature. Shape [groups, out].
    """
    return np.asarray(np.einsum("goi,goi->go", np.matmul(error, gram), error))
