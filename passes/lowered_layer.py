"""Where a layer is found in a lowered graph, so that its numbers can be replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.encoding import WeightEncoding
from ptq.core.matrix import WeightLayout
from ptq.core.plan import BiasEncoding, FloatBias


@dataclass(frozen=True)
class LoweredLayer:
    """Where a layer is found in the lowered graph.

    Attributes:
        source: Value that it reads: codes if its input has a grid, else the float input.
        codes: Initializer of its weight codes.
        scale: Initializer of its weight scales.
        zero: Initializer of its weight zero points, where blocks have them, or None.
        bias: Initializer of its bias, codes or float, or None.
        bias_scale: Initializer of the scales of an integer bias, or None.
        layout: How the weight is stored.
    """

    source: str
    codes: str
    scale: str
    zero: str | None
    bias: str | None
    bias_scale: str | None
    layout: WeightLayout

    def rewrite(self, graph: ir.Graph, encoding: WeightEncoding, bias: BiasEncoding | FloatBias | None) -> None:
        """Replace the numbers of the layer; shapes and types stay."""
        _overwrite(graph, self.codes, self.layout.to_tensor(encoding.codes))
        _overwrite(graph, self.scale, along_blocks(encoding.params.scale, self.layout))
        if self.zero is not None:
            _overwrite(graph, self.zero, along_blocks(encoding.params.zero_point, self.layout))
        if self.bias is not None and bias is not None:
            _overwrite(graph, self.bias, bias.values if isinstance(bias, FloatBias) else bias.codes)
        if self.bias_scale is not None and isinstance(bias, BiasEncoding):
            _overwrite(graph, self.bias_scale, bias.scale)


def along_blocks(values: NDArray[Any], layout: WeightLayout) -> NDArray[Any]:
    """Scales or zero points as the graph stores them: those of blocks lie along the weight's axes."""
    return values if values.ndim < 2 or layout.out_axis == 0 else np.ascontiguousarray(values.T)


def _overwrite(graph: ir.Graph, name: str, array: NDArray[Any]) -> None:
    value = graph.initializers[name]
    shape = value.const_value.shape.numpy() if value.const_value is not None else array.shape
    value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(shape), name=name)
