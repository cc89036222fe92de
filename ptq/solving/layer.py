"""One linear layer from float arrays to codes: its weight by a method, and the bias that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import QuantParams, quantize
from ptq.core.channel_mean import ChannelMean
from ptq.core.damping import LayerMoments, add_damping, damped
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.layer_statistics import LayerStatistics, output_error
from ptq.core.plan import BiasEncoding, FloatBias
from ptq.core.problem import LayerProblem
from ptq.core.solved_layer import AtOutput, SolvedLayer
from ptq.core.spec import PerAxis, QuantSpec
from ptq.core.widths import Widths
from ptq.passes.graph import initializer_of
from ptq.solving.choices import LayerChoice

Float = NDArray[np.float64]

PRODUCT_DAMPING = 0.1
"""Least share of a product's diagonal moments that is added: unseen samples ask for it, among 0, .1, .3 and 1."""

BIAS_LIMIT = 2.0**30
"""Largest bias code: half of int32's range, so that the products that are added to it have the other half."""


@dataclass(frozen=True)
class InputMeans:
    """Mean input of a layer in the float and in the quantized network, per column of its weight matrix.

    Attributes:
        quantized: Shape [groups, in].
        original: Shape [groups, in].
    """

    quantized: Float
    original: Float

    @staticmethod
    def of_moments(moments: LayerMoments, *, own: bool = False) -> InputMeans:
        """The means behind a layer's moments.

        Args:
            moments: Of its input.
            own: Leave to the bias what this layer's weights do, not what earlier layers did. Behind the products of a
                transformer come residual sums and normalisations: the mean error of a few tokens with huge values
                would shift all others.
        """
        whole = moments.whole
        quantized = whole.total / max(whole.count, 1)
        return InputMeans(quantized, quantized if own else whole.float_total / max(whole.count, 1))

    @staticmethod
    def of_channels(layer: LinearLayer, channels: ChannelMean) -> InputMeans:
        """Every tap of a kernel sees its channel's mean; border effects of padding are neglected."""
        shape, groups = layer.layout.shape, layer.unfold.groups
        num_taps = int(np.prod(shape)) // (shape[layer.layout.out_axis] * (len(channels.mean) // groups))
        met = 1 / float(np.prod(layer.unfold.strides)) if layer.unfold.transposed else 1.0  # the rest are zeros between
        mean = np.repeat(channels.mean.reshape(groups, -1) * met, num_taps, axis=1)
        return InputMeans(mean, mean)


@dataclass(frozen=True)
class LayerArrays:
    """A layer with its float parameters.

    Attributes:
        layer: The layer.
        weight: Shape [out, in].
        bias: Shape [out], or None.
    """

    layer: LinearLayer
    weight: NDArray[np.float32]
    bias: Float | None

    @staticmethod
    def of(model: ir.Model, layer: LinearLayer) -> LayerArrays:
        """Read a layer's parameters from a prepared model."""
        weight = layer.layout.to_matrix(initializer_of(model, layer.weight))
        bias = None if layer.bias is None else initializer_of(model, layer.bias).reshape(-1).astype(np.float64)
        return LayerArrays(layer, weight, bias)

    @property
    def takes_bias(self) -> bool:
        """Whether a constant may be added to the output at no cost: a product without an Add behind it has no room."""
        return self.layer.op_type != "MatMul" or self.bias is not None


@dataclass(frozen=True)
class InputStatistics:
    """What is known of a layer's input.

    Attributes:
        moments: For methods that need them.
        means: The bias takes up the mean error that the integers cause; None leaves the bias alone.
    """

    moments: LayerMoments | None
    means: InputMeans | None


def solve_layer(
    arrays: LayerArrays,
    choice: LayerChoice,
    grid: QuantParams | None,
    given: InputStatistics,
    widths: Widths | None = None,
    *,
    saturates: bool = False,
) -> SolvedLayer:
    """Quantize one weight and the bias that belongs to it.

    Args:
        arrays: The layer.
        choice: Method and grid of the weight.
        grid: Grid of the layer's input, which an integer bias depends on; None if the input stays float.
        given: What is known of its input.
        widths: Bits of each weight; None is the word length of the choice for all.
        saturates: Integer products of two neighbouring weights must not overflow.

    Returns:
        Codes, scales and bias.
    """
    moments, means = given.moments, given.means
    weight, bias = arrays.weight, arrays.bias
    corrects = means is not None and arrays.takes_bias
    seen = damped_statistics = None
    if moments is not None:
        moments = moments.centred(weight) if corrects else moments
        seen, damped_statistics = moments.whole, _damped(moments, arrays, grid)
    order = arrays.layer.order_in_kernels if saturates else None
    problem = LayerProblem(arrays.layer.name, weight, choice.spec, damped_statistics, widths, order)
    encoding: WeightEncoding = choice.method.quantize(problem)
    guarded = 0
    integer = None if arrays.layer.op_type == "MatMul" else grid  # behind a product the bias is added in float
    if not isinstance(encoding, IntegerWeight):
        integer = None
    elif bias is not None and integer is not None:
        encoding, guarded = _guard_bias(encoding, problem, bias, integer)
    decoded = encoding.decode().astype(np.float64)
    if corrects and means is not None:
        bias = (np.zeros(len(weight)) if bias is None else bias) - _shift(decoded, weight, means)
    encoded: BiasEncoding | FloatBias | None = None
    if bias is not None:
        encoded = FloatBias(bias.astype(np.float32))
        if isinstance(encoding, IntegerWeight) and integer is not None:
            encoded = _encode_bias(bias, encoding, integer)
    error = np.square(decoded - weight).sum(), np.square(weight, dtype=np.float64).sum()
    solved = SolvedLayer(encoding, encoded, guarded, (float(error[0]), float(error[1])))
    if seen is None or damped_statistics is None:
        return solved
    return replace(
        solved, output=_at_output(seen, decoded, damped_statistics.best_weight(weight), arrays, encoding.widest_step())
    )


def _at_output(
    seen: LayerStatistics, decoded: Float, best: Float, arrays: LayerArrays, step: NDArray[np.float32]
) -> AtOutput:
    signal, rounding = float(seen.energy.sum()), decoded - best
    by_group = rounding.reshape(len(seen.gram), -1, seen.gram.shape[-1])
    row_error = output_error(by_group, seen.gram).reshape(-1)
    error = seen.relative_error(decoded, seen.target_correlation(arrays.weight)) * signal
    return AtOutput(signal, error, _bound(seen, step), rounding.astype(np.float32), row_error)


def _bound(seen: LayerStatistics, step: NDArray[np.float32]) -> float:
    """Zhang, Zhou, Saab (arXiv 2201.11113): each step of the path leaves at most half a step times one column."""
    steps = np.broadcast_to(np.square(step, dtype=np.float64), seen.energy.size).reshape(seen.energy.shape)
    inputs = np.einsum("gii->g", seen.gram)[:, None]
    return float((steps / 4 * inputs).sum())


def _damped(moments: LayerMoments, arrays: LayerArrays, grid: QuantParams | None) -> LayerStatistics:
    """What the method is given.

    Products with rounded inputs are not asked to undo earlier errors: to do so they shrink, and behind them come a
    softmax, which turns scale into temperature, and normalisations. All products are held to their float weights, the
    more the fewer positions were seen for each input: a few hundred texts tell less of the next ones than images do.
    """
    if arrays.layer.unfold.kernel:
        return moments.damped(arrays.weight)
    unknown = arrays.weight.shape[1] / max(moments.whole.count, 1)
    if arrays.layer.op_type == "Gemm":
        return add_damping(moments.damped(arrays.weight), unknown)
    return add_damping(
        moments.damped(arrays.weight) if grid is None else damped(moments.whole, np.inf), max(PRODUCT_DAMPING, unknown)
    )


def _shift(decoded: Float, weight: NDArray[np.float32], means: InputMeans) -> Float:
    """Mean error of the output: Q x~ - W x. Shape [out]."""
    by_group = (len(means.quantized), -1, means.quantized.shape[-1])
    after = np.einsum("goi,gi->go", decoded.reshape(by_group), means.quantized)
    before = np.einsum("goi,gi->go", weight.reshape(by_group).astype(np.float64), means.original)
    return np.asarray((after - before).reshape(-1))


def _guard_bias(
    encoding: IntegerWeight, problem: LayerProblem, bias: Float, grid: QuantParams
) -> tuple[IntegerWeight, int]:
    """Raise weight scales whose bias would not fit into int32.

    The bias is stored at input scale times weight scale. A (nearly) dead channel has a tiny weight scale and an
    ordinary bias; a coarser grid costs its weights nothing that matters, an overflowing bias ruins the layer.
    """
    least = np.abs(bias) / BIAS_LIMIT / float(grid.scale)
    limits = None if problem.saturation is None else (problem.saturation.low, problem.saturation.high)
    return encoding.raised(least, problem.weight, limits)


def _encode_bias(bias: Float, encoding: IntegerWeight, grid: QuantParams) -> BiasEncoding:
    scale = np.broadcast_to(np.float32(grid.scale) * encoding.scale, bias.shape).astype(np.float32)
    params = QuantParams(
        scale, np.zeros(bias.shape, np.int32), QuantSpec(32, signed=True, symmetric=True, granularity=PerAxis(0))
    )
    return BiasEncoding(quantize(bias, params).astype(np.int32), scale)
