"""From statistics to a plan: one grid per activation group, one weight problem per linear layer. Pure decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.collect import CalibrationStatistics
from ptq.calibration.observers import Observer
from ptq.core.affine import QuantParams, choose_qparams, quantize
from ptq.core.distortion import expected_error
from ptq.core.encoding import WeightEncoding
from ptq.core.layer_statistics import LayerStatistics
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.problem import LayerProblem, Needs
from ptq.core.spec import PerAxis, PerTensor, QuantSpec
from ptq.core.statistics import Histogram
from ptq.passes._linear import LinearLayer
from ptq.passes.placement import Placement
from ptq.recipe import Recipe, tag_of
from ptq.target import Target
from ptq.weights import Rtn, WeightMethod

BIAS_LIMIT = 2.0**30
"""Largest bias code: half of int32's range, so that the products that are added to it have the other half."""

MAX_FAN_IN = 6144
"""Inputs of a layer beyond which its second moment (in^2 doubles) is not collected: 300 MB."""

UNEVEN = 16.0
"""Ratio of ranges beyond which a part of a Concat keeps less than four of its eight bits."""

RIGHT_OPERAND = QuantSpec(signed=True, symmetric=True)
"""Grid of the right side of a product of two activations: its kernel is twice as fast on signed, centred codes."""


@dataclass(frozen=True)
class LayerRow:
    """What happened to one linear layer.

    Attributes:
        name: The layer.
        op_type: Conv, Gemm or MatMul.
        num_bits: Word length of its weight.
        num_weights: How many weights it has.
        weight_sqnr_db: Signal to error of the weight, dB.
        input_sqnr_db: Signal to error of its input on the calibration set, dB.
        bias_guarded: Output channels whose weight scale was raised so that the integer bias fits.
        method: Tag of the weight method that was used.
    """

    name: str
    op_type: str
    num_bits: int
    num_weights: int
    weight_sqnr_db: float
    input_sqnr_db: float
    bias_guarded: int
    method: str


@dataclass(frozen=True)
class Settings:
    """How tensors are turned into integers.

    Attributes:
        observer: Chooses activation ranges.
        method: Quantizes weights.
        activation: Grid of activations.
        weight: Grid of weights.
        bias_correction: Shift biases by the mean error that rounding the weights causes.
    """

    observer: Observer
    method: WeightMethod
    activation: QuantSpec
    weight: QuantSpec
    bias_correction: bool

    def method_for(self, layer: LinearLayer) -> WeightMethod:
        """The method, or rounding with clipped ranges where its statistics would not fit into memory."""
        fan_in = int(np.prod(layer.layout.shape)) // layer.layout.shape[layer.layout.out_axis]
        return Rtn("mse") if self.method.needs is Needs.GRAM and fan_in > MAX_FAN_IN else self.method


def layers_to_observe(placement: Placement, settings: Settings) -> tuple[LinearLayer, ...]:
    """Layers whose method wants the second moment of their input."""
    return tuple(layer for layer in placement.layers if settings.method_for(layer).needs is Needs.GRAM)


def make_plan(
    model: ir.Model, placement: Placement, statistics: CalibrationStatistics, settings: Settings
) -> tuple[QuantPlan, tuple[LayerRow, ...]]:
    """Decide every grid and every code.

    Args:
        model: Prepared float model; only its weights are read.
        placement: Which nodes and values become integers.
        statistics: Histograms of `placement.sources` and, for bias correction, means of the layers' inputs.
        settings: Observer, method and grids.

    Returns:
        The plan, and a row per layer for the report.
    """
    groups = _merge_groups(placement, statistics.histograms)
    specs = [RIGHT_OPERAND if i in placement.right_operands else settings.activation for i in range(len(groups))]
    grids = [choose_qparams(settings.observer.choose_range(h, s), s) for h, s in zip(groups, specs, strict=True)]
    noise = [_activation_sqnr_db(h, grid) for h, grid in zip(groups, grids, strict=True)]
    group_of = {name: i for i, members in enumerate(placement.groups) for name in members}
    weights: dict[str, WeightEncoding] = {}
    biases: dict[str, BiasEncoding | FloatBias] = {}
    rows = []
    for layer in placement.layers:
        index = group_of[layer.source]
        mean = (
            statistics.means[layer.source].mean
            if settings.bias_correction and layer.source in statistics.means
            else None
        )
        solved = _solve(_Layer(layer, model, grids[index], mean, statistics.layers.get(layer.name)), settings)
        weights[layer.name] = solved.encoding
        if solved.bias is not None:
            biases[layer.name] = solved.bias
        rows.append(_row(layer, solved, noise[index], tag_of(type(settings.method_for(layer)))))
    activations = {name: grids[i] for name, i in group_of.items()}
    return QuantPlan(activations, weights, biases), tuple(rows)


def settings_of(recipe: Recipe, target: Target) -> Settings:
    """What a recipe means on a target."""
    bits = min(recipe.weights.bits, target.weight_bits)
    weight = replace(target.weight, granularity=recipe.weights.layout, num_bits=bits)
    return Settings(
        recipe.activations, recipe.weights.method, target.activation, weight, recipe.weights.bias_correction
    )


def channel_axes(placement: Placement) -> dict[str, int]:
    """Inputs of linear layers whose channel means bias correction needs -> their channel axis."""
    return {layer.source: 1 if layer.op_type == "Conv" else -1 for layer in placement.layers}


def fragile_layers(
    placement: Placement, statistics: CalibrationStatistics, settings: Settings, min_input_sqnr_db: float
) -> dict[str, str]:
    """Layers that one static grid for their whole input would ruin.

    Args:
        placement: The layers.
        statistics: Histograms of `placement.sources`.
        settings: Observer and grid of activations.
        min_input_sqnr_db: What an input has to keep, dB.

    Returns:
        Layer name -> reason to leave it in float.
    """
    groups = _merge_groups(placement, statistics.histograms)
    group_of = {name: i for i, members in enumerate(placement.groups) for name in members}
    fragile = {}
    for layer in placement.layers:
        if (
            layer.op_type == "Conv"
        ):  # its output has to be codes for its neighbours; a float one costs more than it saves
            continue
        histogram = groups[group_of[layer.source]]
        grid = choose_qparams(settings.observer.choose_range(histogram, settings.activation), settings.activation)
        kept = _activation_sqnr_db(histogram, grid)
        if kept < min_input_sqnr_db:
            bits = settings.activation.num_bits
            fragile[layer.name] = f"its input keeps only {kept:.1f} dB on {bits} bits: a few values dwarf the rest"
    return fragile


def uneven_concats(model: ir.Model, placement: Placement, histograms: Mapping[str, Histogram]) -> tuple[str, ...]:
    """Concats whose parts differ so much in range that the common grid leaves the smallest few codes.

    Args:
        model: Prepared model.
        placement: Which Concats run on integers.
        histograms: Of every value in a group.

    Returns:
        A note for each, with what to try.
    """
    notes = []
    for node in model.graph:
        name = str(node.outputs[0].name)
        if node.op_type != "Concat" or name not in placement.integer_nodes:
            continue
        parts = [histograms[str(value.name)] for value in node.inputs if value is not None]
        reaches = [max(-part.rmin, part.rmax) for part in parts]
        if max(reaches) > UNEVEN * min(reaches):
            ratio = max(reaches) / max(min(reaches), 1e-30)
            notes.append(f"Concat {name!r} joins ranges that differ {ratio:.0f}-fold on one grid; try --exclude {name}")
    return tuple(notes)


def spread(placement: Placement, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Histograms for every value of every group, so that leaving a layer out needs no second look at the data."""
    groups = _merge_groups(placement, histograms)
    result = {name: groups[i] for i, members in enumerate(placement.groups) for name in members}
    return result | dict(histograms)


def _merge_groups(placement: Placement, histograms: Mapping[str, Histogram]) -> list[Histogram]:
    merged: dict[int, Histogram] = {}
    for name, index in placement.sources.items():
        merged[index] = merged[index].merge(histograms[name]) if index in merged else histograms[name]
    return [merged[index] for index in range(len(placement.groups))]


@dataclass(frozen=True)
class _Layer:
    """A linear layer with its arrays."""

    layer: LinearLayer
    model: ir.Model
    grid: QuantParams
    input_mean: NDArray[np.float64] | None
    statistics: LayerStatistics | None

    @property
    def weight(self) -> NDArray[np.float32]:
        """Float weight. Shape [out, in]."""
        return self.layer.layout.to_matrix(self._initializer(self.layer.weight))

    @property
    def bias(self) -> NDArray[np.float64] | None:
        """Float bias. Shape [out]."""
        return None if self.layer.bias is None else self._initializer(self.layer.bias).reshape(-1).astype(np.float64)

    def mean_per_weight(self) -> NDArray[np.float64] | None:
        """Mean of the input that each weight meets; border effects of padding are neglected. Shape [out, in]."""
        if self.input_mean is None:
            return None
        num_out, num_in = self.weight.shape
        if self.layer.op_type != "Conv":
            return np.broadcast_to(self.input_mean, (num_out, num_in))
        channels = self.layer.layout.shape[1]  # per group
        num_groups = len(self.input_mean) // channels
        per_group = np.repeat(self.input_mean.reshape(num_groups, channels), num_in // channels, axis=1)
        return np.repeat(per_group, num_out // num_groups, axis=0)

    def _initializer(self, name: str) -> NDArray[np.float32]:
        tensor = self.model.graph.initializers[name].const_value
        if tensor is None:
            raise RuntimeError(f"initializer {name} lost its values")
        return tensor.numpy()


@dataclass(frozen=True)
class _Solved:
    encoding: WeightEncoding
    bias: BiasEncoding | FloatBias | None
    weight: NDArray[np.float32]
    bias_guarded: int


def _solve(layer: _Layer, settings: Settings) -> _Solved:
    """Quantize one weight and the bias that belongs to it."""
    weight = layer.weight
    problem = LayerProblem(layer.layer.name, weight, settings.weight, layer.statistics)
    encoding: WeightEncoding = settings.method_for(layer.layer).quantize(problem)
    bias = layer.bias
    guarded = 0
    is_product = layer.layer.op_type == "MatMul"
    if bias is not None and not is_product:
        encoding, guarded = _guard_bias(encoding, weight, bias, layer.grid)
    mean = layer.mean_per_weight()
    if mean is not None and not (is_product and bias is None):
        shift = ((encoding.decode().astype(np.float64) - weight) * mean).sum(1)
        bias = (np.zeros(len(weight)) if bias is None else bias) - shift
    if bias is None:
        return _Solved(encoding, None, weight, guarded)
    if is_product:
        return _Solved(encoding, FloatBias(bias.astype(np.float32)), weight, guarded)
    return _Solved(encoding, _encode_bias(bias, encoding, layer.grid), weight, guarded)


def _guard_bias(
    encoding: WeightEncoding, weight: NDArray[np.float32], bias: NDArray[np.float64], grid: QuantParams
) -> tuple[WeightEncoding, int]:
    """Raise weight scales whose bias would not fit into int32.

    The bias is stored at input scale times weight scale. A (nearly) dead channel has a tiny weight scale and an
    ordinary bias; a coarser grid costs its weights nothing that matters, an overflowing bias ruins the layer.
    """
    least = np.abs(bias) / BIAS_LIMIT / float(grid.scale)
    if isinstance(encoding.params.spec.granularity, PerTensor):
        least = np.asarray(least.max(initial=0.0))
    low = encoding.params.scale < least
    if not low.any():
        return encoding, 0
    scale = np.where(low, least, encoding.params.scale).astype(np.float32)
    params = QuantParams(scale, encoding.params.zero_point, encoding.params.spec)
    return type(encoding)(quantize(weight, params), params), int(low.sum())


def _encode_bias(bias: NDArray[np.float64], encoding: WeightEncoding, grid: QuantParams) -> BiasEncoding:
    scale = np.broadcast_to(np.float32(grid.scale) * encoding.params.scale, bias.shape).astype(np.float32)
    params = QuantParams(
        scale, np.zeros(bias.shape, np.int32), QuantSpec(32, signed=True, symmetric=True, granularity=PerAxis(0))
    )
    return BiasEncoding(quantize(bias, params).astype(np.int32), scale)


def _row(layer: LinearLayer, solved: _Solved, input_sqnr_db: float, method: str) -> LayerRow:
    error = np.square(solved.encoding.decode() - solved.weight, dtype=np.float64).sum()
    signal = np.square(solved.weight, dtype=np.float64).sum()
    return LayerRow(
        layer.name,
        layer.op_type,
        solved.encoding.params.spec.num_bits,
        solved.weight.size,
        decibels(signal, error),
        input_sqnr_db,
        solved.bias_guarded,
        method,
    )


def _activation_sqnr_db(histogram: Histogram, grid: QuantParams) -> float:
    density = histogram.density
    middle = (density.lower + density.upper) / 2
    signal = float(np.square(middle) @ density.counts) / max(histogram.total, 1)
    return decibels(signal, float(expected_error(histogram, grid)))


def decibels(signal: float, error: float) -> float:
    """10 log10(signal / error); 200 dB stands for no error at all."""
    if error <= 0 or signal <= 0:
        return 200.0 if error <= 0 else -200.0
    return float(np.clip(10 * np.log10(signal / error), -200.0, 200.0))
