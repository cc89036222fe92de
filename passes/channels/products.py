"""Count of the products that layers with weights take, with any channels gone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Indices, Mask
from ptq.passes.infer_shapes import output_sizes
from ptq.passes.linear import constant, out_axis
from ptq.target import LINEAR_OPS


@dataclass(frozen=True)
class Products:
    """Products of the convolutions and matrix products with weights on one sample, by groups of channels.

    Attributes:
        layers: For each: how often its weight is gone through; group of each position along each of its axes, or how
            many there are.
    """

    layers: tuple[tuple[float, tuple[Indices | int, ...]], ...]

    @staticmethod
    def of(
        model: ir.Model,
        groups: ChannelGroups,
        feed: Mapping[str, NDArray[Any]],
        custom_ops: Sequence[str | Path] = (),
    ) -> Products:
        """Look at a prepared model.

        Args:
            model: The model.
            groups: Its channels.
            feed: One sample.
            custom_ops: Libraries the model needs.
        """
        found = [(node, index) for node in model.graph if (index := _weight_index(node)) is not None]
        names = [str(node.outputs[0].name) for node, _ in found]
        sizes, layers = output_sizes(model, names, feed, custom_ops), []
        for (node, index), name in zip(found, names, strict=True):
            value, weight = node.inputs[index], constant(node.inputs[index])
            if value is None or weight is None:
                continue
            axes = [groups.axes.get(Axis(value, axis)) for axis in range(weight.ndim)]
            axes_or_sizes = [size if at is None else at for at, size in zip(axes, weight.shape, strict=True)]
            apart = math.prod(node.attributes.get_ints("strides", ())) if node.op_type == "ConvTranspose" else 1
            layers.append((sizes[name] / weight.shape[out_axis(node, index)] / apart, tuple(axes_or_sizes)))
        return Products(tuple(layers))

    def count(self, removed: Mask) -> float:
        """Count what is left of the products.

        Args:
            removed: Which groups are gone. Shape [groups].
        """
        return sum(
            times * math.prod(at if isinstance(at, int) else int((~removed[at]).sum()) for at in axes)
            for times, axes in self.layers
        )


def _weight_index(node: ir.Node) -> int | None:
    """Return which input is the weight, of a layer with one; a product's has two axes."""
    if node.op_type not in LINEAR_OPS or node.domain:
        return None
    weights = {index: constant(node.inputs[index]) for index in (1, 0)[: 2 if node.op_type == "MatMul" else 1]}
    least = 3 if "Conv" in node.op_type else 2
    return next((i for i, each in weights.items() if each is not None and each.ndim >= least and each.size), None)
