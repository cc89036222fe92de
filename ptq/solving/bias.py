"""Bias that belongs to a weight: it takes up the mean error of the integers, and fits 32 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams, quantize
from ptq.core.arrays import Float
from ptq.core.channel_mean import ChannelMean
from ptq.core.damping import LayerMoments
from ptq.core.encoding import IntegerWeight
from ptq.core.layer import LinearLayer
from ptq.core.plan import BiasEncoding
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerAxis, QuantSpec


@dataclass(frozen=True)
class InputMeans:
    """Mean input of a layer in the float and in the quantized network, for each column of its weight matrix.

    Attributes:
        quantized: Means in the quantized network, real units. Shape [groups, in].
        original: Means in the float network, real units. Shape [groups, in].
    """

    quantized: Float
    original: Float

    @staticmethod
    def of_moments(moments: LayerMoments, *, own: bool = False) -> InputMeans:
        """Return the means behind a layer's moments.

        Args:
            moments: Moments of the layer's input.
            own: Leave to the bias what this layer's weights do, not what earlier layers did. Behind the products of a
                transformer come residual sums and normalizations: the mean error of a few tokens with huge values
                would shift all others.
        """
        quantized, original = moments.means()
        return InputMeans(quantized, quantized if own else original)

    @staticmethod
    def of_channels(layer: LinearLayer, channels: ChannelMean) -> InputMeans:
        """Give every tap of a kernel its channel's mean; border effects of padding are neglected."""
        shape, groups = layer.layout.shape, layer.unfold.groups
        num_taps = int(np.prod(shape)) // (shape[layer.layout.out_axis] * (len(channels.mean) // groups))
        met = 1 / float(np.prod(layer.unfold.strides)) if layer.unfold.transposed else 1.0  # the rest are zeros between
        mean = np.repeat(channels.mean.reshape(groups, -1) * met, num_taps, axis=1)
        return InputMeans(mean, mean)


BIAS_LIMIT = 2.0**30
"""Largest bias code: half of int32's range, so that the products that are added to it have the other half."""


def mean_error(decoded: Float, weight: NDArray[np.float32], means: InputMeans) -> Float:
    """Compute the mean error of the output: Q x~ - W x. Shape [out], real units."""
    by_group = (len(means.quantized), -1, means.quantized.shape[-1])
    after = np.einsum("goi,gi->go", decoded.reshape(by_group), means.quantized)
    before = np.einsum("goi,gi->go", weight.reshape(by_group).astype(np.float64), means.original)
    return np.asarray((after - before).reshape(-1))


def guard_bias(
    encoding: IntegerWeight, problem: LayerProblem, bias: Float, grid: QuantParams
) -> tuple[IntegerWeight, int]:
    """Raise weight scales whose bias would not fit into int32.

    The bias is stored at input scale times weight scale. A (nearly) dead channel has a tiny weight scale and an
    ordinary bias; a coarser grid costs its weights nothing that matters, an overflowing bias ruins the layer.

    Args:
        encoding: Weight of the layer.
        problem: Problem that it was solved from.
        bias: Bias of the layer, real units. Shape [out].
        grid: Grid of the layer's input.

    Returns:
        The weight, and how many scales were raised.
    """
    least = np.abs(bias) / BIAS_LIMIT / float(grid.scale)
    limits = None if problem.saturation is None else (problem.saturation.low, problem.saturation.high)
    return encoding.raised(least, problem.weight, limits)


def encode_bias(bias: Float, encoding: IntegerWeight, grid: QuantParams) -> BiasEncoding:
    """Round a bias to integers at the scale of the sums it is added to.

    Args:
        bias: Bias of the layer, real units. Shape [out].
        encoding: Weight of the layer; its scales are per row or per tensor.
        grid: Grid of the layer's input.
    """
    scale = np.broadcast_to(np.float32(grid.scale) * encoding.scale, bias.shape).astype(np.float32)
    params = QuantParams(
        scale, np.zeros(bias.shape, np.int32), QuantSpec(32, signed=True, symmetric=True, granularity=PerAxis(0))
    )
    return BiasEncoding(quantize(bias, params).astype(np.int32), scale)
