"""Place of a layer in a lowered graph, so that its numbers can be replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.encoding import IntegerWeight, LookupWeight, WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.matrix import WeightLayout
from ptq.core.plan import BiasEncoding, FloatBias
from ptq.passes._qdq import decoder
from ptq.passes.graph import add_initializer, fresh_name


@dataclass(frozen=True)
class LoweredLayer:
    """Layer in the lowered graph.

    Attributes:
        layer: Layer of the float graph.
        node: Node that computes it.
        source: Value that it reads: codes if its input has a grid, else the float input.
        weight: Its decoded weight.
        bias: Its bias, decoded or float, or None. That of a product is the constant of the Add behind it.
    """

    layer: LinearLayer
    node: ir.Node
    source: str
    weight: ir.Value
    bias: ir.Value | None

    @staticmethod
    def of(layer: LinearLayer, node: ir.Node, bias: ir.Value | None) -> LoweredLayer:
        """Find a layer once its weight and bias are written."""
        pair, weight = decoder(node.inputs[1 - layer.weight_index]), node.inputs[layer.weight_index]
        assert weight is not None  # it was just written
        source = layer.source if pair is None or pair.inputs[0] is None else str(pair.inputs[0].name)
        return LoweredLayer(layer, node, source, weight, bias)

    def rewrite(self, graph: ir.Graph, encoding: WeightEncoding, bias: BiasEncoding | FloatBias | None) -> None:
        """Replace the numbers of the layer, which was lowered with plain codes."""
        if isinstance(encoding, LookupWeight):
            reals = self.layer.layout.to_tensor(encoding.decode())
            self.node.replace_input_with(self.layer.weight_index, _constant(graph, f"{self.layer.weight}_reals", reals))
        else:
            self.node.replace_input_with(self.layer.weight_index, self.weight)
            self._rewrite_codes(encoding)
        self._rewrite_bias(graph, bias)

    def _rewrite_codes(self, weight: IntegerWeight) -> None:
        back = self.weight.producer()
        if back is None:
            raise RuntimeError(f"the weight of {self.layer.name} was lowered without codes")
        layout = self.layer.layout
        grid = (along_blocks(each, layout) for each in (weight.scale, weight.params.zero_point))
        arrays = (layout.to_tensor(weight.codes), *grid)
        for value, array in zip(back.inputs, arrays, strict=False):  # zero points are only where kernels read them
            _overwrite(_root(value), array)

    def _rewrite_bias(self, graph: ir.Graph, bias: BiasEncoding | FloatBias | None) -> None:
        if bias is None or self.bias is None:
            return
        pair = decoder(self.bias)
        if isinstance(bias, BiasEncoding):
            parts = pair.inputs[:2] if pair is not None else ()
            for value, array in zip(parts, (bias.codes, bias.scale), strict=False):
                _overwrite(value, array)
            self.node.replace_input_with(2, self.bias)
        elif pair is None:
            _overwrite(self.bias, bias.values)
        else:  # next to a float weight the bias is float too
            self.node.replace_input_with(2, _constant(graph, f"{self.layer.name}_bias_reals", bias.values))


def along_blocks(values: NDArray[Any], layout: WeightLayout) -> NDArray[Any]:
    """Arrange scales or zero points as the graph stores them: those of blocks lie along the weight's axes."""
    return values if values.ndim < 2 or layout.out_axis == 0 else np.ascontiguousarray(values.T)


def _root(value: ir.Value | None) -> ir.Value:
    """Find the initializer behind the operators that widen it."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    if value is None or value.const_value is None:
        raise RuntimeError("a weight that is to be replaced was not lowered with plain codes")
    return value


def _overwrite(value: ir.Value | None, array: NDArray[Any]) -> None:
    """Write other numbers in the shape of the present ones."""
    if value is None or value.const_value is None:
        raise RuntimeError("a constant that is to be replaced is none")
    shape = value.const_value.shape.numpy()
    value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(shape), name=value.name)


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    return add_initializer(graph, fresh_name(graph, name), np.ascontiguousarray(array, np.float32))
