"""A linear layer as the solvers know it: names of its values, and how its weight meets its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.matrix import WeightLayout
from ptq.core.unfold import Unfold


@dataclass(frozen=True)
class LinearLayer:
    """A node that multiplies an activation by a constant weight.

    Attributes:
        name: Name of its output value, which identifies the layer everywhere.
        op_type: Conv, ConvTranspose, Gemm or MatMul.
        source: Name of the activation that goes in.
        weight: Name of the weight.
        bias: Name of the bias, or None. That of a MatMul is the constant of the Add behind it.
        layout: Where the output features are.
        unfold: How the input meets the weight matrix.
        weight_index: Which input of the node the weight is; 0 for a product with the weight on the left.
    """

    name: str
    op_type: str
    source: str
    weight: str
    bias: str | None
    layout: WeightLayout
    unfold: Unfold
    weight_index: int = 1

    @property
    def fan_in(self) -> int:
        """Number of weights per output feature."""
        return int(np.prod(self.layout.shape)) // self.layout.shape[self.layout.out_axis]

    @property
    def adds_bias_in_float(self) -> bool:
        """Whether its integer kernel gives floats, to which the Add behind it adds the bias."""
        return self.op_type == "MatMul"

    @property
    def order_in_kernels(self) -> NDArray[np.intp] | None:
        """Columns in the order in which onnxruntime's integer kernels read them, channels innermost.

        None for depthwise convolutions, whose kernel sums in 32 bits.
        """
        columns = np.arange(self.fan_in)
        if self.op_type != "Conv":
            return columns
        features, channels = self.layout.shape[:2]
        if channels == 1 and features == self.unfold.groups:
            return None
        return columns.reshape(channels, -1).T.reshape(-1)
