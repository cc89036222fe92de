"""Bias absorption: constants that a channel never falls below move from one convolution's bias into the next ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.passes.equalize import ChannelPair, channel_pairs
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant, name_of

ONE_SIDED = ("Relu", "LeakyRelu", "PRelu", "Clip", "MaxPool")
"""f(x - c) = f(x) - c while x stays at or above c > 0; under a Clip also while x stays below its upper bound."""


@dataclass(frozen=True)
class AbsorbBias(ir.passes.InPlacePass):
    """Lower channels of a convolution's output by constants, and let the convolutions behind it add what is missing.

    Before: y = Conv(f(Conv(x, W, b)), V, d)
    After:  y = Conv(f(Conv(x, W, b - c)), V, d + V c)
    Requires: `can_absorb` the pairs: f is the identity above 0, and the convolutions behind it pad nothing.
    Ensures: no operator is added.
    Preserves float outputs: yes, within rounding, while no such channel falls below its constant.
    Source: Data-free quantization, arXiv 1906.04721, section 4.1.3.

    Attributes:
        shifts: Value that the second convolutions read -> c of each channel.
    """

    shifts: Mapping[str, Float]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift every pair whose value is named."""
        for pair in [pair for pair in channel_pairs(model) if pair.value.name in self.shifts]:
            shift = self.shifts[str(pair.value.name)]
            _add_to_bias(model.graph, pair.first, -shift)
            for node in pair.readers:
                _add_to_bias(model.graph, node, _through(node, shift))
        return ir.passes.PassResult(model, bool(self.shifts))


def can_absorb(pair: ChannelPair) -> bool:
    """Whether constants may move through a pair."""
    moved = all(node.op_type in ONE_SIDED for node in pair.between)
    return moved and all(_pads_nothing(reader) for reader in pair.readers)


def _pads_nothing(node: ir.Node) -> bool:
    """Whether a convolution has no border of zeros, which would have to be one of constants."""
    return node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        node.attributes.get_ints("pads", ())
    )


def _through(node: ir.Node, shift: Float) -> Float:
    """Compute what a convolution makes of constant channels. Shape [features]."""
    weight = constant(node.inputs[1])
    if weight is None:
        raise RuntimeError(f"{name_of(node)} has no constant weight")
    groups, (features, channels) = node.attributes.get_int("group", 1), weight.shape[:2]
    taps = weight.astype(np.float64).reshape(groups, features // groups, channels, -1).sum(-1)
    return np.asarray(np.einsum("gfc,gc->gf", taps, shift.reshape(groups, channels)).reshape(-1))


def _add_to_bias(graph: ir.Graph, node: ir.Node, more: Float) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    old = constant(bias)
    new = np.asarray(more if old is None else old + more, np.float32)
    if bias is not None:
        bias.const_value = ir.tensor(new, name=bias.name)
        return
    node.resize_inputs(3)
    node.replace_input_with(2, add_initializer(graph, fresh_name(graph, f"{name_of(node)}_bias"), new))
