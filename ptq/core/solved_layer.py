"""Results of solving one linear layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.arrays import Float
from ptq.core.encoding import IntegerWeight, LookupWeight, WeightEncoding
from ptq.core.plan import BiasEncoding, FloatBias
from ptq.core.spec import PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.core.storage import Alphabet, Words
from ptq.core.widths import Widths


@dataclass(frozen=True)
class AtOutput:
    """Energies at a layer's output on the calibration set, everything before it quantized.

    Attributes:
        signal: Of the float output.
        error: Of the whole error, that of earlier layers included.
        bound: What greedy path following on equal inputs would stay below without clipping, scale^2 / 4 |X|^2 per
            output feature.
        rounding: Distance of the weight from the real one of least error. Shape [out, in].
        row_error: What that distance adds at the output. Shape [out].
    """

    signal: float
    error: float
    bound: float
    rounding: NDArray[np.float32]
    row_error: Float


@dataclass(frozen=True)
class SolvedLayer:
    """A linear layer in integers.

    Attributes:
        encoding: Its weight.
        bias: Its bias.
        bias_guarded: Output channels whose weight scale was raised so that the integer bias fits.
        weight_error: Energy of the weight's error, and of the weight.
        output: What was seen at the layer's output; None if the method looked at the weight alone.
        note: What came of a split, for the report.
    """

    encoding: WeightEncoding
    bias: BiasEncoding | FloatBias | None
    bias_guarded: int
    weight_error: tuple[float, float]
    output: AtOutput | None = None
    note: str = ""

    def settled(self) -> SolvedLayer:
        """Return the layer without what is as large as its weight and no longer needed."""
        none = np.zeros((0, 0), np.float32)
        return self if self.output is None else replace(self, output=replace(self.output, rounding=none))

    @property
    def excess(self) -> float:
        """Energy that rounding adds, at the output if it was looked at, else in the weight; relative."""
        if self.output is None:
            return self.weight_error[0] / max(self.weight_error[1], 1e-300)
        return float(self.output.row_error.sum()) / max(self.output.signal, 1e-300)


ENCODING_PARTS = (
    IntegerWeight, LookupWeight, Alphabet, Words, Widths, QuantParams, QuantSpec, PerAxis, PerBlock, PerTensor,
)  # fmt: skip
SOLVED_PARTS = (AtOutput, BiasEncoding, FloatBias, *ENCODING_PARTS)
"""Dataclasses that may be in the file of a solved layer."""
