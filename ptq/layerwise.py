"""What a recipe means for a model: how each weight is quantized, and one grid per group of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ptq.calibration.observers import Auto, MinMax, Observer
from ptq.calibration.record import CalibrationStatistics
from ptq.core.affine import QuantParams, choose_qparams
from ptq.core.distortion import expected_error
from ptq.core.plan import QuantPlan
from ptq.core.points import MAX_BITS
from ptq.core.problem import Needs
from ptq.core.spec import PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.core.spread import Spread, spread_of_values
from ptq.core.statistics import Histogram
from ptq.passes._linear import LinearLayer
from ptq.passes.placement import Placement
from ptq.passes.selection import layers_matching, outermost
from ptq.passes.split_center import SplitCenter
from ptq.recipe import Recipe, Weights
from ptq.splitting import LayerChoice, choose_branches
from ptq.target import Target
from ptq.weights import Rtn

MAX_FAN_IN = 6144
"""Inputs of a layer beyond which its second moment (in^2 doubles) is not collected: 300 MB."""

BLOCK_ZERO_BITS = 4
"""Longest words whose blocks have zero points: few weights are seldom centred, and few codes feel it."""

UNEVEN = 16.0
"""Ratio of ranges beyond which a part of a Concat keeps less than four of its eight bits."""

NO_ERROR_DB = 200.0
"""What stands for no error at all: log of 0 has no place in a report."""

RIGHT_OPERAND = QuantSpec(signed=True, symmetric=True)
"""Grid of the right side of a product of two activations: its kernel is twice as fast on signed, centred codes."""


@dataclass(frozen=True)
class Settings:
    """How tensors are turned into integers.

    Attributes:
        observer: Chooses activation ranges.
        activation: Grid of activations.
        weights: Choice for every layer without one of its own.
        bias_correction: Shift biases by the mean error that the integers cause.
        extra_macs: Budget of extra points in output features, as a share of all products.
        overrides: Layer name -> choice.
        coarse: Layers that are the coarse part of another.
        centred_blocks: Blocks have no zero points, whatever their word length: our own kernels know none.
        pairs: Integer products of two neighbouring weights must not overflow; see `ptq.core.pairs`.
        dynamic: Ranges of activations are found at run time; recurrent layers run on integers too.
    """

    observer: Observer
    activation: QuantSpec
    weights: LayerChoice
    bias_correction: bool
    extra_macs: float = 0.0
    overrides: Mapping[str, LayerChoice] = field(default_factory=dict)
    coarse: frozenset[str] = frozenset()
    centred_blocks: bool = False
    pairs: bool = False
    dynamic: bool = False

    def choice(self, layer: LinearLayer) -> LayerChoice:
        """The choice for a layer; rounding with clipped ranges where a second moment would not fit into memory."""
        chosen = self.overrides.get(layer.name, self.weights)
        if isinstance(chosen.spec.granularity, PerBlock):  # onnxruntime has a kernel for blocks of a product's inputs
            product = layer.op_type == "MatMul" and layer.weight_index == 1
            centred = self.centred_blocks or chosen.spec.num_bits > BLOCK_ZERO_BITS
            spec = replace(chosen.spec, symmetric=centred)
            spec = spec if product else replace(chosen.spec, granularity=PerAxis(0))
            chosen = replace(chosen, spec=spec, split="never" if product else chosen.split)
        too_large = chosen.method.needs is Needs.GRAM and layer.fan_in > MAX_FAN_IN
        return replace(chosen, method=Rtn("mse")) if too_large else chosen

    def observer_of(self, only_products: bool) -> Observer:
        """The observer for a value; `auto` covers all of one that only products read.

        What is rare there is not noise: a few tokens with huge values steer the attention of all others, and what a
        calibration set shows once, other data shows more often.
        """
        return MinMax() if only_products and isinstance(self.observer, Auto) else self.observer

    @property
    def walks(self) -> bool:
        """Whether any layer may need more than its weight."""
        return any(choice.method.needs is Needs.GRAM for choice in [self.weights, *self.overrides.values()])


@dataclass(frozen=True)
class Grids:
    """Grids of the activations.

    Attributes:
        of_value: Value name -> grid.
        sqnr_db: Value name -> what its group keeps on that grid, dB.
        group: Value name -> first value of its group.
    """

    of_value: Mapping[str, QuantParams]
    sqnr_db: Mapping[str, float]
    group: Mapping[str, str]


def choose_grids(placement: Placement, histograms: Mapping[str, Histogram], settings: Settings) -> Grids:
    """One grid per group of values.

    Args:
        placement: The groups.
        histograms: Of `placement.sources`.
        settings: Observer and grid of activations.
    """
    groups = _merge_groups(placement, histograms)
    specs = [RIGHT_OPERAND if i in placement.right_operands else settings.activation for i in range(len(groups))]
    observers = [settings.observer_of(i in placement.only_products) for i in range(len(groups))]
    grids = [choose_qparams(o.choose_range(h, s), s) for o, h, s in zip(observers, groups, specs, strict=True)]
    noise = [_activation_sqnr_db(h, grid) for h, grid in zip(groups, grids, strict=True)]
    index = {name: i for i, members in enumerate(placement.groups) for name in members}
    return Grids(
        {name: grids[i] for name, i in index.items()},
        {name: noise[i] for name, i in index.items()},
        {name: placement.groups[i][0] for name, i in index.items()},
    )


def grid_spreads(placement: Placement, histograms: Mapping[str, Histogram], plan: QuantPlan) -> dict[str, Spread]:
    """What was seen on each grid of activations, by the first value of its group.

    Args:
        placement: The groups.
        histograms: Of `placement.sources`.
        plan: Holds their grids.
    """
    spreads = {}
    for members, histogram in zip(placement.groups, _merge_groups(placement, histograms), strict=True):
        grid = plan.activations[members[0]]
        spreads[members[0]] = spread_of_values(histogram, grid, _activation_sqnr_db(histogram, grid))
    return spreads


def settings_of(recipe: Recipe, target: Target, model: ir.Model) -> Settings:
    """What a recipe means for a model on a target.

    Args:
        recipe: Decisions.
        target: Deployment target.
        model: Prepared model, whose layers the rules of the recipe name.

    Raises:
        RecipeError: A rule matches nothing.
    """
    weights = recipe.weights

    def choice(own: Weights, bits: int) -> LayerChoice:
        spec = replace(target.weight, granularity=own.layout, num_bits=bits, narrow_range=bits > 7)
        return LayerChoice(own.method, spec, own.split)

    overrides = {}
    if weights.first_last_bits is not None:
        outer = choice(weights, weights.first_last_bits)
        overrides = dict.fromkeys(outermost(model), outer)
    for rule in recipe.layers:
        own = rule.over(weights)
        chosen = choice(own, own.bits)
        overrides |= dict.fromkeys(() if rule.skip else layers_matching(model, rule.match), chosen)
    base = choice(weights, weights.bits)
    activation = replace(target.activation, num_bits=recipe.activation_bits)
    return Settings(
        recipe.activations,
        activation,
        base,
        weights.bias_correction,
        weights.extra_macs,
        overrides,
        centred_blocks=recipe.is_dynamic and target.native,
        pairs=target.pairs and not recipe.weight_only,
        dynamic=recipe.is_dynamic,
    )


def split_branches(model: ir.Model, settings: Settings) -> tuple[ir.Model, Settings, tuple[str, ...]]:
    """Give wide centre taps of 8-bit kernels a convolution of their own, where the settings want it.

    Args:
        model: Prepared float model.
        settings: What the recipe means for it.

    Returns:
        The model, the settings with choices for the new layers, and a note for the report if anything changed.
    """
    branches = choose_branches(model, settings.choice)
    notes = [f"{name}: {why}" for name, why in branches.rejected.items() if why]
    chosen = branches.chosen
    if not chosen:
        return model, settings, tuple(notes)
    divided, bits = model.clone(), MAX_BITS - settings.pairs  # that many neighbours share without loss
    for per_tensor in (False, True):
        names = frozenset(
            name for name, each in chosen.items() if isinstance(each.spec.granularity, PerTensor) == per_tensor
        )
        SplitCenter(names, per_tensor, (1 << (bits - 1)) - 1)(divided)
    whole = {name: replace(choice, split="never") for name, choice in chosen.items()}
    parts = {f"{name}_fine": choice for name, choice in whole.items()}
    for name, choice in whole.items():
        spec = replace(choice.spec, num_bits=bits, narrow_range=True)
        parts[f"{name}_coarse"] = replace(choice, spec=spec)
    coarse = frozenset(f"{name}_coarse" for name in chosen)
    notes.insert(0, f"{len(chosen)} convolutions split into a coarse and a fine one: {', '.join(chosen)}")
    return divided, replace(settings, overrides={**settings.overrides, **parts}, coarse=coarse), tuple(notes)


def channel_axes(placement: Placement) -> dict[str, int]:
    """Inputs of linear layers whose channel means bias correction needs -> their channel axis."""
    return {
        layer.source: 1 if layer.unfold.kernel else -2 if layer.unfold.columns else -1 for layer in placement.layers
    }


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
        index = group_of[layer.source]
        histogram, observer = groups[index], settings.observer_of(index in placement.only_products)
        grid = choose_qparams(observer.choose_range(histogram, settings.activation), settings.activation)
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


def _activation_sqnr_db(histogram: Histogram, grid: QuantParams) -> float:
    density = histogram.density
    middle = (density.lower + density.upper) / 2
    signal = float(np.square(middle) @ density.counts) / max(histogram.total, 1)
    return decibels(signal, float(expected_error(histogram, grid)))


def decibels(signal: float, error: float) -> float:
    """10 log10(signal / error); 200 dB stands for no error at all."""
    if not (np.isfinite(signal) and np.isfinite(error)):
        return -NO_ERROR_DB
    if error <= 0 or signal <= 0:
        return NO_ERROR_DB if error <= 0 else -NO_ERROR_DB
    return float(np.clip(10 * np.log10(signal / error), -NO_ERROR_DB, NO_ERROR_DB))
