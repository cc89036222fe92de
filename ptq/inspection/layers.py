"""Facts about linear layers one by one: shapes, products, ranges, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.layer import LinearLayer
from ptq.core.statistics import Histogram
from ptq.passes.graph import initializer_of
from ptq.passes.linear import describe_linear
from ptq.passes.planner import NO_KERNEL
from ptq.target import LINEAR_OPS

FEW = 1e-30


@dataclass(frozen=True)
class LayerFacts:
    """Facts about one linear layer of a float model.

    Attributes:
        name: Its output value.
        op_type: Conv, ConvTranspose, Gemm or MatMul.
        shape: Of the weight, as in the graph.
        parameters: Numbers in weight and bias.
        macs: Products per sample; None where nothing was run and the shape is open.
        num_bits: Word length that its weight gets by default; 32 if it stays float.
        reason: Why it stays float.
        weight_range: Smallest and largest weight; None where weights were not read.
        row_ratio: Largest row's reach over the median row's; a row is what makes one output feature. What 8 bits for
            the whole tensor would lose in most rows.
        peak_ratio: Largest magnitude over the root mean square of the weights; 3 to 6 is usual.
        input_range: Smallest and largest input on the data that was given.
    """

    name: str
    op_type: str
    shape: tuple[int, ...]
    parameters: int
    macs: int | None
    num_bits: int
    reason: str | None
    weight_range: tuple[float, float] | None
    row_ratio: float | None
    peak_ratio: float | None
    input_range: tuple[float, float] | None = None


def linear_layers(model: ir.Model) -> tuple[LinearLayer, ...]:
    """List every layer with a constant weight, whether it can become integers or not."""
    found = [describe_linear(node, integer=False) for node in model.graph if node.op_type in LINEAR_OPS]
    return tuple(layer for layer in found if isinstance(layer, LinearLayer))


@dataclass(frozen=True)
class Known:
    """Facts about all layers that were found out before.

    Attributes:
        sizes: Layer -> numbers in its output, for one sample.
        bits: Layer -> word length of those that become integers.
        left_float: Layer -> why it stays float.
        histograms: Value -> what was seen of it.
    """

    sizes: Mapping[str, int]
    bits: Mapping[str, int]
    left_float: Mapping[str, str]
    histograms: Mapping[str, Histogram]


def describe_layers(
    model: ir.Model, layers: Iterable[LinearLayer], known: Known, *, read_weights: bool
) -> tuple[LayerFacts, ...]:
    """Describe linear layers, one row each.

    Args:
        model: Prepared float model.
        layers: Its linear layers.
        known: What was found out about them.
        read_weights: Whether to look at the weights; those of a huge model stay on disk.
    """
    return tuple(_describe(model, layer, known, read_weights=read_weights) for layer in layers)


def _describe(model: ir.Model, layer: LinearLayer, known: Known, *, read_weights: bool) -> LayerFacts:
    size, shape = known.sizes.get(layer.name), layer.layout.shape
    bias = 0 if layer.bias is None else shape[layer.layout.out_axis]
    low = high = rows = peak = None
    if read_weights:
        low, high, rows, peak = _spread(layer.layout.to_matrix(initializer_of(model, layer.weight)))
    seen = known.histograms.get(layer.source)
    return LayerFacts(
        layer.name,
        layer.op_type,
        shape,
        layer.fan_in * shape[layer.layout.out_axis] + bias,
        None if size is None else size * layer.fan_in,
        known.bits.get(layer.name, 32),
        known.left_float.get(layer.name) or (None if layer.name in known.bits else NO_KERNEL),
        None if low is None or high is None else (low, high),
        rows,
        peak,
        None if seen is None else (float(seen.rmin), float(seen.rmax)),
    )


def _spread(weight: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Return smallest weight, largest, reach of the widest row over the median row's, largest magnitude over rms."""
    low, high = weight.min(1), weight.max(1)
    reach = np.maximum(-low, high)
    flat = weight.reshape(-1)
    rms = float(np.sqrt(np.dot(flat, flat) / flat.size))
    widest = float(reach.max())
    return float(low.min()), float(high.max()), widest / max(float(np.median(reach)), FEW), widest / max(rms, FEW)
