"""Removal of groups of channels: out of every weight, every value and every shape that they were part of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.channels.fold import Told, fold
from ptq.passes.channels.groups import KEEP, ChannelGroups
from ptq.passes.channels.links import Axis, Mask, extent
from ptq.passes.linear import constant
from ptq.passes.unused import RemoveUnused


@dataclass(frozen=True)
class RemoveChannels(ir.passes.InPlacePass):
    """Take groups of channels out of a model, and what is known of them into the layers behind.

    Before: y = Conv(Relu(Conv(x, W, b)), V, c), of whose channels some never change
    After:  the same without the rows W[removed] and the columns V[:, removed]; c + V[:, removed] constants
    Requires: groups numbered as `ChannelGroups.of` numbers this model's.
    Preserves float outputs: as far as what is told of the channels is true.

    Attributes:
        removed: Which groups go. Shape [groups].
        told: Name and axis of what layers sum over -> what is known of its channels.
    """

    removed: Mask
    told: Mapping[tuple[str, int], Told]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the groups of channels that are named."""
        groups = ChannelGroups.of(model)

        def kept(axis: Axis) -> Mask:
            found = groups.axes.get(axis)
            return np.ones(extent(axis) or 0, np.bool_) if found is None else ~self.removed[found]

        for read in groups.reads:
            gone = ~kept(read.source)
            if gone.any():
                fold(read, gone, self.told[str(read.source.value.name), read.source.axis], kept)
        for node in [node for node in model.graph if node.op_type in KEEP and not node.domain]:
            KEEP[node.op_type](node, kept)
        masks = {axis: kept(axis) for axis in groups.axes}
        for axis, mask in masks.items():
            if not mask.all():
                _cut(axis, mask)
        RemoveUnused()(model)
        return ir.passes.PassResult(model, bool(self.removed.any()))


def _cut(axis: Axis, mask: Mask) -> None:
    """Shorten an axis of a value; of a constant, its numbers too."""
    value = axis.value
    array = constant(value)
    if array is not None:
        value.const_value = ir.tensor(np.ascontiguousarray(np.compress(mask, array, axis.axis)), name=value.name)
    if value.shape is not None:
        sizes = list(value.shape)
        sizes[axis.axis] = int(mask.sum())
        value.shape = ir.Shape(sizes)
