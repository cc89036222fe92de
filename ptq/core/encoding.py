"""How a weight is stored: codes and what turns them back into reals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import IntArray, QuantParams, dequantize


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


WeightEncoding = AffineEncoding
"""Every way to store a weight. Methods are open, encodings are closed: lowering matches on this union."""
