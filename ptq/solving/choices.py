"""Choices that a recipe makes for a model: how each weight is quantized, and one grid per group of activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.allocation.bit_plan import BitPlan, shortest_of
from ptq.calibration.observers import Auto, MinMax, Observer
from ptq.core.errors import RecipeError
from ptq.core.layer import LinearLayer
from ptq.core.problem import Needs, NetworkMethod, WeightQuantizer
from ptq.core.spec import PerAxis, PerBlock, QuantSpec
from ptq.passes.linear import describe_linear, name_of
from ptq.passes.selection import linear_nodes, names_matching, outermost, sites_matching
from ptq.passes.sites import WeightSite, rows_and_columns
from ptq.passes.stored import StoredWeight
from ptq.passes.tables import Table
from ptq.recipe import Recipe, Split, Weights
from ptq.sensitivity.table import FLOAT
from ptq.target import Target
from ptq.weights import Rtn

MAX_FAN_IN = 6144
"""Inputs of a layer beyond which its second moment (in^2 doubles) is not collected: 300 MB."""

BYTE = 8
MORE_BITS = 2
"""Bits that words of an embedding table have more than those of weights, up to a byte: nothing corrects its errors."""

BLOCK_ZERO_BITS = 4
"""Longest words whose blocks have zero points: few weights are seldom centered, and few codes feel it."""


@dataclass(frozen=True)
class LayerChoice:
    """Choice for the weight of one layer.

    Attributes:
        method: Method that quantizes it.
        spec: Grid of its integers.
        split: Weights that get words twice as long: the kernel's center where it is far wider than the rest, and then
            only if that pays (`auto`); the center of any kernel (`center`); all weights (`whole`).
    """

    method: WeightQuantizer | NetworkMethod
    spec: QuantSpec
    split: Split = "never"

    @property
    def quantizer(self) -> WeightQuantizer:
        """Method that is asked for one weight by itself.

        Raises:
            TypeError: It solves all layers together.
        """
        if isinstance(self.method, NetworkMethod):
            raise TypeError(
                f"{type(self.method).__name__} solves all layers together; expected a method for one weight"
            )
        return self.method

    @property
    def together(self) -> NetworkMethod | None:
        """Method that solves all layers together; None if this one does not."""
        return self.method if isinstance(self.method, NetworkMethod) else None


@dataclass(frozen=True)
class Choices:
    """Choices for all tensors that are turned into integers.

    Attributes:
        observer: Chooses activation ranges.
        activation: Grid of activations.
        weights: Choice for every layer without one of its own.
        bias_correction: Shift biases by the mean error that the integers cause.
        extra_macs: Budget of longer words in some output features, as a share of all products.
        overrides: Layer name -> choice.
        rows: Layer name -> bits of the weights of each output feature, none shorter than its choice says.
        coarse: Layers that are the coarse part of another.
        centered_blocks: Blocks have no zero points, whatever their word length: our own kernels know none.
        saturates: Integer products of two neighboring weights must not overflow; see `ptq.core.saturation`.
        dynamic: Ranges of activations are found at run time; recurrent layers run on integers too.
        shared: Weights that several layers read: their one set of codes is rounded, as no layer's inputs decide alone.
    """

    observer: Observer
    activation: QuantSpec
    weights: LayerChoice
    bias_correction: bool
    extra_macs: float = 0.0
    overrides: Mapping[str, LayerChoice] = field(default_factory=dict)
    rows: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    coarse: frozenset[str] = frozenset()
    centered_blocks: bool = False
    saturates: bool = False
    dynamic: bool = False
    shared: frozenset[str] = frozenset()

    def choice(self, site: WeightSite) -> LayerChoice:
        """Return the choice for a weight; clipped rounding where a second moment would not fit into memory."""
        return self._of_layer(site) if isinstance(site, LinearLayer) else self._of_rows(site)

    def order_of(self, site: WeightSite) -> NDArray[np.intp] | None:
        """Return columns as integer kernels meet them, if sums of two neighbors may overflow; None if nothing can."""
        match site:
            case LinearLayer():
                return site.order_in_kernels if self.saturates else None
            case StoredWeight(is_recurrent=True) if self.saturates and self.dynamic:
                return np.arange(rows_and_columns(site)[1])
            case _:
                return None

    def _of_rows(self, site: Table | StoredWeight) -> LayerChoice:
        """Choose rounding with a scale per row: long words cost bytes and no time, and nothing corrects errors."""
        spec, chosen = self.weights.spec, self.overrides.get(site.name)
        if chosen is None and isinstance(site, StoredWeight):
            chosen = self.overrides.get(site.reader)
        longer = BYTE if isinstance(site, StoredWeight) and site.role == "float" else spec.num_bits + MORE_BITS
        bits = min(longer, BYTE) if chosen is None else chosen.spec.num_bits
        method: WeightQuantizer | NetworkMethod = Rtn("mse" if bits < BYTE else "absmax")
        if chosen is not None and chosen.method.needs == Needs.WEIGHT:
            method = chosen.method
        return LayerChoice(method, replace(spec, num_bits=bits, narrow_range=bits == BYTE, granularity=PerAxis(0)))

    def _of_layer(self, layer: LinearLayer) -> LayerChoice:
        chosen = self.overrides.get(layer.name, self.weights)
        if isinstance(chosen.spec.granularity, PerBlock):  # onnxruntime has a kernel for blocks of a product's inputs
            product = layer.op_type == "MatMul" and layer.weight_index == 1
            centered = self.centered_blocks or chosen.spec.num_bits > BLOCK_ZERO_BITS
            spec = replace(chosen.spec, symmetric=centered)
            spec = spec if product else replace(chosen.spec, granularity=PerAxis(0))
            chosen = replace(chosen, spec=spec, split="never" if product else chosen.split)
        if Needs.MOMENTS not in chosen.method.needs:
            return chosen
        if layer.weight in self.shared:
            return replace(chosen, method=Rtn("mse" if chosen.spec.num_bits < BYTE else "absmax"))
        return replace(chosen, method=Rtn("mse")) if layer.fan_in > MAX_FAN_IN else chosen

    def observer_of(self, only_products: bool) -> Observer:
        """Return the observer for a value; `auto` covers all of one that only products read.

        What is rare there is not noise: a few tokens with huge values steer the attention of all others, and what a
        calibration set shows once, other data shows more often.
        """
        return MinMax() if only_products and isinstance(self.observer, Auto) else self.observer

    @property
    def walks(self) -> bool:
        """Whether any layer may need more than its weight."""
        return any(choice.method.needs for choice in [self.weights, *self.overrides.values()])


def choices_of(recipe: Recipe, target: Target, model: ir.Model) -> Choices:
    """Work out the choices of a recipe for a model on a target.

    Args:
        recipe: Decisions of the user.
        target: Deployment target.
        model: Prepared model, whose layers the rules of the recipe name.

    Raises:
        RecipeError: A rule matches nothing, or the bit plan is not one for this model.
    """
    weights = recipe.weights

    def choice(own: Weights, bits: int) -> LayerChoice:
        spec = replace(target.weight, granularity=own.layout, num_bits=bits, narrow_range=bits > 7)
        return LayerChoice(own.chosen, spec, own.split)

    overrides = {}
    if weights.first_last_bits is not None:
        outer = choice(weights, weights.first_last_bits)
        overrides = dict.fromkeys(outermost(model), outer)
    for rule in recipe.layers:
        own = rule.over(weights)
        chosen = choice(own, own.bits)
        names_matching(model, rule.match, "layers")
        overrides |= dict.fromkeys(sites_matching(model, rule.match) if rule.has_settings else (), chosen)
    base = choice(weights, weights.bits)
    activation = replace(target.activation, num_bits=recipe.activation_bits)
    choices = Choices(
        recipe.activations,
        activation,
        base,
        weights.bias_correction,
        weights.extra_macs,
        overrides,
        centered_blocks=recipe.is_dynamic and target.native,
        saturates=target.saturates and not recipe.weight_only,
        dynamic=recipe.is_dynamic,
        shared=_shared(model),
    )
    return choices if recipe.bit_plan is None else _planned(choices, recipe.bit_plan, model)


def _shared(model: ir.Model) -> frozenset[str]:
    """Return the names of weights that several linear layers read."""
    readers = Counter(
        str(value.name)
        for node in linear_nodes(model).values()
        for value in dict.fromkeys(node.inputs)
        if value is not None and value.const_value is not None and len(value.const_value.shape) > 1
    )
    return frozenset(name for name, count in readers.items() if count > 1)


def _planned(choices: Choices, plan: BitPlan, model: ir.Model) -> Choices:
    """Put the word lengths of a plan over those of choices; whoever places integers leaves out its floats."""
    nodes, overrides, rows = linear_nodes(model), dict(choices.overrides), dict[str, NDArray[np.int8]]()
    for name, bits in plan.layers.items():
        if name not in nodes:
            known = ", ".join(list(nodes)[:3])
            raise RecipeError(f"bit_plan: the model has no layer {name!r:.80}; its layers are {known}, ...")
        if bits == FLOAT:
            continue
        chosen, shortest = overrides.get(name, choices.weights), shortest_of(bits)
        spec = replace(chosen.spec, num_bits=shortest, narrow_range=shortest == BYTE)
        overrides[name] = replace(chosen, spec=spec)
        if isinstance(bits, tuple):
            rows[name] = _rows_of(nodes[name], bits)
    return replace(choices, overrides=overrides, rows=rows)


def _rows_of(node: ir.Node, bits: tuple[int, ...]) -> NDArray[np.int8]:
    layer = describe_linear(node, integer=False)
    features = len(bits) if isinstance(layer, str) else rows_and_columns(layer)[0]
    if len(bits) != features:
        raise RecipeError(
            f"bit_plan: layer {name_of(node)!r:.80} has {features} output features; the plan has bits for {len(bits)}"
        )
    return np.array(bits, np.int8)
