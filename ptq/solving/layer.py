"""Solving of one linear layer, from float arrays to codes: its weight by a method, and the bias that belongs to it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.arrays import Float
from ptq.core.damping import HeldMoments, LayerMoments
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.layer_statistics import LayerStatistics, output_error
from ptq.core.plan import BiasEncoding, FloatBias
from ptq.core.problem import LayerProblem
from ptq.core.solved_layer import AtOutput, SolvedLayer
from ptq.core.widths import Widths
from ptq.passes.graph import initializer_of
from ptq.solving.bias import InputMeans, encode_bias, guard_bias, mean_error
from ptq.solving.choices import LayerChoice
from ptq.solving.gain import Side, gain_of, sides_of

PRODUCT_DAMPING = 0.1
"""Least share of a product's diagonal moments that is added: unseen samples ask for it, among 0, .1, .3 and 1."""


@dataclass(frozen=True)
class LayerArrays:
    """Layer with its float parameters.

    Attributes:
        layer: Layer as it was found in the graph.
        weight: Float weight. Shape [out, in].
        bias: Float bias, or None. Shape [out].
        keeps_gain: Whether its scales make up for its gain: what comes of it passes through other layers, not products.
    """

    layer: LinearLayer
    weight: NDArray[np.float32]
    bias: Float | None
    keeps_gain: bool = False

    @staticmethod
    def of(model: ir.Model, layer: LinearLayer, inner: Container[str] = ()) -> LayerArrays:
        """Read a layer's parameters from a prepared model.

        Args:
            model: Prepared model.
            layer: Layer in it.
            inner: Layers with others behind them, by name.
        """
        weight = layer.layout.to_matrix(initializer_of(model, layer.weight))
        bias = None if layer.bias is None else initializer_of(model, layer.bias).reshape(-1).astype(np.float64)
        undoes = bool(layer.unfold.kernel) or layer.op_type == "Gemm"  # products undo no earlier error, see `hold`
        return LayerArrays(layer, weight, bias, undoes and layer.name in inner)

    @property
    def takes_bias(self) -> bool:
        """Whether a constant may be added to the output at no cost: not to a product without an Add behind it."""
        return not self.layer.adds_bias_in_float or self.bias is not None


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a layer's input.

    Attributes:
        moments: Moments for methods that need them.
        means: Means by which the bias takes up the mean error that the integers cause; None leaves the bias alone.
        sides: Halves of the samples that tell the layer's gain; none if it is left alone.
    """

    moments: HeldMoments | None
    means: InputMeans | None
    sides: tuple[Side, ...] = ()

    @staticmethod
    def of(
        moments: LayerMoments, means: InputMeans | None, arrays: LayerArrays, grid: QuantParams | None
    ) -> InputStatistics:
        """Prepare the moments of a layer's input: about their means where a bias takes up every mean error, and held.

        Args:
            moments: Moments as they were taken; used up.
            means: Means of the same input, or None.
            arrays: The layer.
            grid: Grid of its input; None if that stays float.
        """
        means = means if arrays.takes_bias else None
        if means is not None:
            moments.center(arrays.weight)
        sides = sides_of(moments, arrays.weight) if arrays.keeps_gain else ()
        return InputStatistics(hold(moments, arrays, grid), means, sides)


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
        arrays: Layer to solve.
        choice: Method and grid of the weight.
        grid: Grid of the layer's input, which an integer bias depends on; None if the input stays float.
        given: Statistics of its input.
        widths: Bits of each weight; None takes the word length of the choice for all.
        saturates: Whether integer products of two neighboring weights can overflow, and must not.

    Returns:
        Codes, scales and bias.
    """
    given = given if arrays.takes_bias else replace(given, means=None)
    moments = given.moments
    problem = problem_of(arrays, choice, moments, widths, saturates=saturates)
    encoding, gain = _with_gain(choice.quantizer.quantize(problem), given.sides)
    integer, guarded = None if arrays.layer.adds_bias_in_float else grid, 0
    if isinstance(encoding, IntegerWeight) and arrays.bias is not None and integer is not None:
        encoding, guarded = guard_bias(encoding, problem, arrays.bias, integer)
    decoded, weight = encoding.decode().astype(np.float64), arrays.weight
    bias = _bias_of(arrays, decoded, encoding, integer, given.means)
    error = np.square(decoded - weight).sum(), np.square(weight, dtype=np.float64).sum()
    solved = SolvedLayer(encoding, bias, guarded, (float(error[0]), float(error[1])))
    if moments is None or problem.statistics is None:
        return solved
    best, step = problem.statistics.best_weight(weight) / gain, encoding.widest_step()
    return replace(solved, output=_at_output(moments, decoded, best, step))


def problem_of(
    arrays: LayerArrays,
    choice: LayerChoice,
    moments: HeldMoments | None,
    widths: Widths | None,
    *,
    saturates: bool,
) -> LayerProblem:
    """Return the problem that the method is given."""
    statistics = None if moments is None else moments.damped()
    order = arrays.layer.order_in_kernels if saturates else None
    return LayerProblem(arrays.layer.name, arrays.weight, choice.spec, statistics, widths, order)


def _with_gain(encoding: WeightEncoding, sides: Sequence[Side]) -> tuple[WeightEncoding, float]:
    """Give the scales of a weight the inverse of its gain, and return that gain."""
    if not isinstance(encoding, IntegerWeight) or not sides:
        return encoding, 1.0
    gain = gain_of(sides, encoding.decode().astype(np.float64))
    return encoding.scaled(1 / gain), gain


def _bias_of(
    arrays: LayerArrays,
    decoded: Float,
    encoding: WeightEncoding,
    grid: QuantParams | None,
    means: InputMeans | None,
) -> BiasEncoding | FloatBias | None:
    """Return the float bias without the mean error of the integers, on codes where its sum is."""
    bias = arrays.bias
    if means is not None:
        bias = (np.zeros(len(decoded)) if bias is None else bias) - mean_error(decoded, arrays.weight, means)
    if bias is None:
        return None
    if grid is None or not isinstance(encoding, IntegerWeight):  # weights out of a table run float kernels
        return FloatBias(bias.astype(np.float32))
    return encode_bias(bias, encoding, grid)


def _at_output(moments: HeldMoments, decoded: Float, best: Float, step: NDArray[np.float32]) -> AtOutput:
    seen = moments.plain()
    signal, rounding = float(seen.energy.sum()), decoded - best
    by_group = rounding.reshape(len(seen.gram), -1, seen.gram.shape[-1])
    row_error = output_error(by_group, seen.gram).reshape(-1)
    error = seen.relative_error(decoded, moments.asked) * signal
    return AtOutput(signal, error, _bound(seen, step), rounding.astype(np.float32), row_error)


def _bound(seen: LayerStatistics, step: NDArray[np.float32]) -> float:
    """Bound the error as Zhang, Zhou, Saab (arXiv 2201.11113) do: each step leaves half a step times one column."""
    steps = np.broadcast_to(np.square(step, dtype=np.float64), seen.energy.size).reshape(seen.energy.shape)
    inputs = np.einsum("gii->g", seen.gram)[:, None]
    return float((steps / 4 * inputs).sum())


def hold(moments: LayerMoments, arrays: LayerArrays, grid: QuantParams | None) -> HeldMoments:
    """Return the moments that the method is given, `moments` used up.

    Products with rounded inputs are not asked to undo earlier errors: to do so they shrink, and behind them come a
    softmax, which turns scale into temperature, and normalizations. All products are held to their float weights, the
    more the fewer positions were seen for each input: a few hundred texts tell less of the next ones than images do.
    """
    unknown = arrays.weight.shape[1] / max(moments.count, 1)
    if arrays.layer.unfold.kernel:
        share = 0.0
    else:
        share = unknown if arrays.layer.op_type == "Gemm" else max(PRODUCT_DAMPING, unknown)
    is_product = not arrays.layer.unfold.kernel and arrays.layer.op_type != "Gemm"
    strength = np.inf if is_product and grid is not None else moments.strength(arrays.weight)
    return HeldMoments.of(moments.whole(), arrays.weight, strength, share)
