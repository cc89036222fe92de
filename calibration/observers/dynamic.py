"""Ranges chosen anew for every input, while the model runs."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.calibration.observers.minmax import MinMax
from ptq.core.affine import Range
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram


@dataclass(frozen=True)
class Dynamic:
    """Dynamic quantization: the range of each input is taken when it arrives; products become integers, nothing else.

    Nothing is ever clipped, at the price of a pass over every input to find its range. For transformers and recurrent
    networks; convolutions stay float, as onnxruntime's ConvInteger is far slower than the float kernel.
    """

    def choose_range(self, statistics: Histogram, spec: QuantSpec) -> Range:
        """Return the range that an input with all the values seen would get.

        Args:
            statistics: The tensor.
            spec: The grid that the range will be turned into.

        Returns:
            The observed range, widened to contain 0.
        """
        return MinMax().choose_range(statistics, spec)
