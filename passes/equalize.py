"""Cross-layer equalization: a scale per channel moves from one convolution into those behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.passes.linear import constant, name_of

HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Clip", "MaxPool", "AveragePool")
"""f(s x) = s f(x) for every channel and s > 0; a Clip only for channels that stay away from its bounds."""


@dataclass(frozen=True)
class ChannelPair:
    """A convolution, and the convolutions that alone read its output, directly or through what passes scales on.

    Attributes:
        first: The convolution in front.
        value: What the others read.
        readers: The others.
        bounds: Tightest bounds that a Clip between sets to a channel; -inf, inf without.
        between: What lies between, in dataflow order.
    """

    first: ir.Node
    value: ir.Value
    readers: tuple[ir.Node, ...]
    bounds: tuple[float, float]
    between: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Equalize(ir.passes.InPlacePass):
    """Divide the features of a convolution, multiply the channels that the convolutions behind it read.

    Before: y = Conv(f(Conv(x, W, b)), V)
    After:  y = Conv(f(Conv(x, W / s, b / s)), s V)
    Requires: `channel_pairs` finds the pair: f is homogeneous per channel and nothing else reads its values.
    Ensures: no operator is added, so nothing gets slower.
    Preserves float outputs: yes, within rounding, while no channel with a scale reaches the bounds of a Clip.

    Attributes:
        scales: Value that the second convolutions read -> what each channel is divided by.
    """

    scales: Mapping[str, Float]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rescale every pair whose value is named."""
        for pair in [pair for pair in channel_pairs(model) if pair.value.name in self.scales]:
            scale = self.scales[str(pair.value.name)]
            for value in pair.first.inputs[1:]:
                _divide_features(value, scale)
            for node in pair.readers:
                _multiply_channels(node, scale)
        return ir.passes.PassResult(model, bool(self.scales))


def channel_pairs(model: ir.Model) -> Iterator[ChannelPair]:
    """Yield every pair of a graph, in dataflow order."""
    for node in model.graph:
        if not _is_convolution(node):
            continue
        value, bounds, between = node.outputs[0], (-np.inf, np.inf), list[ir.Node]()
        while not value.is_graph_output():
            readers = tuple(dict.fromkeys(use.node for use in value.uses()))
            if readers and all(_is_convolution(reader) and reader.inputs[0] is value for reader in readers):
                yield ChannelPair(node, value, readers, bounds, tuple(between))
                break
            limits = _passes_scales(readers[0]) if len(readers) == 1 else None
            if limits is None:
                break
            bounds = max(bounds[0], limits[0]), min(bounds[1], limits[1])
            between.append(readers[0])
            value = readers[0].outputs[0]


def _is_convolution(node: ir.Node) -> bool:
    """Whether a node is a Conv with constant float32 weights that nobody shares, and a constant bias if any."""
    if node.op_type != "Conv" or node.domain or node.graph is None:
        return False
    values = [value for value in node.inputs[1:] if value is not None]
    parts = [constant(value) for value in values if len(value.uses()) == 1]
    own = len(parts) == len(values) > 0
    return own and all(part is not None and part.dtype == np.float32 and part.size for part in parts)


def _passes_scales(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds that a homogeneous node sets; None for other nodes."""
    if node.op_type not in HOMOGENEOUS or node.domain or len(node.outputs) > 1:
        return None
    if node.op_type == "Clip":
        return _bounds(node)
    slope = constant(node.inputs[1]) if node.op_type == "PRelu" else None
    return None if node.op_type == "PRelu" and slope is None else (-np.inf, np.inf)


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds of a Clip that channels have to stay within.

    A bound of 0 is none; with one on the wrong side of 0 the node is not homogeneous anywhere: None.
    """
    ends = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        end = constant(value)
        if value is not None and (end is None or end.size != 1):
            return None
        ends.append(default if end is None else float(end.reshape(-1)[0]))
    low, high = ends
    return None if low > 0 or high <= 0 else (-np.inf if low == 0 else low, high)


def _divide_features(value: ir.Value | None, scale: Float) -> None:
    values = constant(value)
    if value is not None and values is not None:
        divided = values / scale.reshape(-1, *(1 for _ in values.shape[1:]))
        value.const_value = ir.tensor(divided.astype(np.float32), name=value.name)


def _multiply_channels(node: ir.Node, scale: Float) -> None:
    value, weight = node.inputs[1], constant(node.inputs[1])
    if value is None or weight is None:
        raise RuntimeError(f"{name_of(node)} has no constant weight")
    groups, (features, channels) = node.attributes.get_int("group", 1), weight.shape[:2]
    by_group = weight.reshape(groups, features // groups, channels, -1) * scale.reshape(groups, 1, channels, 1)
    value.const_value = ir.tensor(by_group.reshape(weight.shape).astype(np.float32), name=value.name)
