"""Channels of zeros that fill the vectors of depthwise kernels.

onnxruntime's integer depthwise kernel on x86 takes 16 channels at once and what is left one by one: 120 channels take
2.6 times as long as 128.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant, is_float32

ALIKE = frozenset({
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool",
})  # fmt: skip
"""Operators that treat all channels alike, and keep them apart."""

PADDED = "ai.ptq.padded"
"""Key in the metadata: the multiple that channels were filled up to."""

WIDEST = 64
NARROWEST = 8
"""Channels below which filling would more than double what is computed."""


@dataclass(frozen=True)
class PadChannels(ir.passes.InPlacePass):
    """Add channels of zeros around depthwise convolutions, up to a multiple of what their kernel takes at once.

    Before: y = Conv(DepthwiseConv(Relu(Conv(x, W)), D), V), with 120 channels between
    After:  the same with 128: W and D have rows of zeros more, V columns of zeros
    Requires: constant float32 weights that nothing else uses; between them nothing but what treats channels alike.
    Preserves float outputs: yes, exactly.

    Attributes:
        lanes: Channels that the kernel takes at once.
    """

    lanes: int

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fill every stretch of channels with a depthwise layer in it that can be filled as a whole."""
        seen, modified = set[ir.Value](), False
        for node in list(model.graph):
            if _is_depthwise(node) and node.outputs[0] not in seen:
                stretch = _Stretch.around(node)
                seen |= set(stretch.values)
                missing = -stretch.num_channels % self.lanes
                if stretch.is_closed and missing and stretch.num_channels >= NARROWEST:
                    stretch.fill(model.graph, missing)
                    modified = True
        if modified:
            model.metadata_props[PADDED] = str(self.lanes)
        return ir.passes.PassResult(model, modified)

    @staticmethod
    def of(model: ir.Model) -> PadChannels | None:
        """Return the pass that filled a model's channels; None if none did."""
        lanes = model.metadata_props.get(PADDED, "")
        return PadChannels(int(lanes)) if lanes.isdecimal() and 1 < int(lanes) <= WIDEST else None


@dataclass(frozen=True)
class _Stretch:
    """Values with the same channels.

    Attributes:
        values: The values.
        makers: Convolutions over all channels that make some of them.
        readers: Convolutions over all channels that read some of them.
        inner: Depthwise convolutions between.
        num_channels: Number of channels.
        is_closed: Whether nothing else makes or reads them.
    """

    values: tuple[ir.Value, ...]
    makers: tuple[ir.Node, ...]
    readers: tuple[ir.Node, ...]
    inner: tuple[ir.Node, ...]
    num_channels: int
    is_closed: bool

    @staticmethod
    def around(depthwise: ir.Node) -> _Stretch:
        """Follow the channels of a depthwise convolution up and down."""
        values, closed = dict[ir.Value, None](), True
        makers, readers, inner = dict[ir.Node, None](), dict[ir.Node, None](), dict[ir.Node, None]()
        stack = [depthwise.outputs[0]]
        while stack:
            value = stack.pop()
            if value in values:
                continue
            values[value] = None
            node = value.producer()
            closed &= node is not None and not value.is_graph_output()
            for each in ([] if node is None else [node]) + [use.node for use in value.uses()]:
                if _is_depthwise(each):
                    inner[each] = None
                    stack += [*_channels(each.inputs[:1]), each.outputs[0]]
                elif each.op_type in ALIKE and not each.domain and len(each.outputs) == 1:
                    arrays = [constant(beside) for beside in each.inputs]
                    closed &= all(array is None or array.size == 1 for array in arrays)
                    stack += [*_channels(each.inputs), each.outputs[0]]
                elif _is_open(each) and (each is node or value is each.inputs[0]):
                    (makers if each is node else readers)[each] = None
                else:
                    closed = False
        weight = constant(depthwise.inputs[1])
        count = 0 if weight is None else len(weight)
        return _Stretch(tuple(values), tuple(makers), tuple(readers), tuple(inner), count, closed)

    def fill(self, graph: ir.Graph, count: int) -> None:
        """Add channels of zeros."""
        for node in (*self.makers, *self.inner):
            for index in range(1, len(node.inputs)):
                _extend(graph, node, index, 0, count)
        for node in self.readers:
            _extend(graph, node, 1, 1, count)
        for node in self.inner:
            node.attributes["group"] = ir.AttrInt64("group", self.num_channels + count)
        for value in self.values:
            value.shape = None  # to be found again


def _channels(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None and constant(value) is None]


def _is_depthwise(node: ir.Node) -> bool:
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    group = node.attributes.get_int("group", 1)
    return weight is not None and _is_own(node) and weight.shape[1] == 1 and 1 < group == len(weight)


def _is_open(node: ir.Node) -> bool:
    """Whether a node is a convolution over all channels whose weight and bias may change."""
    return node.op_type == "Conv" and not node.domain and node.attributes.get_int("group", 1) == 1 and _is_own(node)


def _is_own(node: ir.Node) -> bool:
    own = [value for value in node.inputs[1:3] if value is not None]
    return not node.domain and all(
        is_float32(value) and constant(value) is not None and len(value.uses()) == 1 for value in own
    )


def _extend(graph: ir.Graph, node: ir.Node, index: int, axis: int, count: int) -> None:
    """Put zeros at the end of an axis of a constant."""
    value = node.inputs[index]
    array = constant(value)
    if value is None or array is None:
        return
    wide = np.pad(array, [(0, count if each == axis else 0) for each in range(array.ndim)])
    node.replace_input_with(index, add_initializer(graph, fresh_name(graph, f"{value.name}_filled"), wide))
