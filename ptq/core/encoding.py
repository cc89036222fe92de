"""How a weight is stored: codes and what turns them back into reals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import FloatArray, IntArray, QuantParams, dequantize, expand, nearest_level, quantize
from ptq.core.widths import Points


@dataclass(frozen=True)
class AffineEncoding:
    """Integers on an affine grid.

    Attributes:
        codes: Shape [out, in], within the limits of `params.spec`.
        params: Scales and zero points.
    """

    codes: IntArray
    params: QuantParams

    def decode(self) -> NDArray[np.float32]:
        """The weight that the model will compute with. Shape [out, in], real units."""
        return dequantize(self.codes, self.params)

    def size_in_bits(self) -> int:
        """Codes at their word length plus scales at 32 bits."""
        return self.codes.size * self.params.spec.num_bits + self.params.scale.size * 32

    def zeros(self) -> int:
        """How many weights are 0, whatever code stands for it."""
        return count_zeros(self.codes, self.params)

    def nearest(self, weight: FloatArray, params: QuantParams) -> IntArray:
        """Codes of a weight on another grid of the same kind. Shape [out, in]."""
        return quantize(weight, params)


@dataclass(frozen=True)
class SumEncoding:
    """Each weight a sum of points of one word length, which together are one longer integer; see `Points`.

    Attributes:
        codes: The sums. Shape [out, in], int8.
        params: Scales of the finest point; its spec has the word length of one point.
        points: How many points make up each weight.
    """

    codes: IntArray
    params: QuantParams
    points: Points

    def decode(self) -> NDArray[np.float32]:
        """The weight that the model will compute with. Shape [out, in], real units."""
        return dequantize(self.codes, self.params)

    def size_in_bits(self) -> int:
        """All points at their word length plus scales at 32 bits."""
        return int(self.points.word_lengths(self.params.spec.num_bits).sum()) + self.params.scale.size * 32

    def zeros(self) -> int:
        """How many weights are 0."""
        return count_zeros(self.codes, self.params)

    def nearest(self, weight: FloatArray, params: QuantParams) -> IntArray:
        """Codes of a weight on another grid of the same kind. Shape [out, in]."""
        steps = weight / params.scale.reshape(-1, 1).astype(np.float64)
        return nearest_level(steps, *self.points.limits(params.spec)).astype(np.int8)


def count_zeros(codes: IntArray, params: QuantParams) -> int:
    """How many codes lie on their zero point."""
    return int(np.count_nonzero(codes == expand(params.zero_point, codes.shape, params.spec.granularity)))


WeightEncoding = AffineEncoding | SumEncoding
"""Every way to store a weight. Methods are open, encodings are closed: lowering matches on this union."""
