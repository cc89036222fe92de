"""How a weight is stored: codes and what turns them back into reals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import FloatArray, IntArray, QuantParams, dequantize, expand, nearest_level, quantize
from ptq.core.widths import Widths


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
    """Integers of several word lengths on one grid; see `Widths`.

    Attributes:
        codes: Shape [out, in], int8, within the limits of `widths`.
        params: Scales; its spec has the word length that most weights have.
        widths: Bits of each weight.
    """

    codes: IntArray
    params: QuantParams
    widths: Widths

    def decode(self) -> NDArray[np.float32]:
        """The weight that the model will compute with. Shape [out, in], real units."""
        return dequantize(self.codes, self.params)

    def size_in_bits(self) -> int:
        """Codes at their word lengths plus scales at 32 bits."""
        return int(self.widths.bits.sum()) + self.params.scale.size * 32

    def zeros(self) -> int:
        """How many weights are 0."""
        return count_zeros(self.codes, self.params)

    def nearest(self, weight: FloatArray, params: QuantParams) -> IntArray:
        """Codes of a weight on another grid of the same kind. Shape [out, in]."""
        steps = weight / params.scale.reshape(-1, 1).astype(np.float64)
        return nearest_level(steps, *self.widths.limits(narrow_range=params.spec.narrow_range)).astype(np.int8)


def count_zeros(codes: IntArray, params: QuantParams) -> int:
    """How many codes lie on their zero point."""
    return int(np.count_nonzero(codes == expand(params.zero_point, codes.shape, params.spec.granularity)))


WeightEncoding = AffineEncoding | SumEncoding
"""Every way to store a weight. Methods are open, encodings are closed: lowering matches on this union."""
