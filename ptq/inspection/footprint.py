"""Size of the quantized file, found without solving anything."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.encoding import IntegerWeight
from ptq.core.layer import LinearLayer
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.spec import QuantSpec
from ptq.delivery.deliver import pack
from ptq.models.source import weight_bytes
from ptq.modes import StaticRanges
from ptq.passes.normalize import INT4_OPSET
from ptq.passes.placement import Placement
from ptq.passes.sites import rows_and_columns
from ptq.recipe import Recipe, Weights
from ptq.solving.choices import BYTE, Choices, choices_of
from ptq.streaming.solve import BLOCK
from ptq.target import Target

FLOAT_BYTES = 4


def file_bytes(model: ir.Model, placement: Placement, target: Target, num_bits: int) -> int:
    """Find the quantized file's size by lowering the model to codes that are all 0: they take as much room.

    Splits, longer words and what channels gain by being evened out are not in it.

    Args:
        model: Prepared float model. Not modified.
        placement: What becomes integers.
        target: Where it will run.
        num_bits: Word length of the weights.
    """
    recipe = Recipe(weights=Weights(bits=num_bits))
    settings = choices_of(recipe, target, model)
    copy = model.clone()
    if num_bits < BYTE and copy.opset_imports.get("", 0) < INT4_OPSET:
        copy.opset_imports[""] = INT4_OPSET
        _drop_notes(copy)
    plan = blank_plan(placement, settings)
    lowered = StaticRanges(recipe, target).lower(copy, placement, plan)
    return pack(lowered, {"ptq.float_sha256": "0" * 64}).num_bytes


def _drop_notes(model: ir.Model) -> None:
    """Drop metadata as ONNX's version converter does, whose other work changes no sizes and takes long."""
    for carrier in (model.graph, *model.graph, *model.graph.inputs, *model.graph.outputs):
        carrier.metadata_props.clear()


def huge_file_bytes(model: ir.Model, placement: Placement, num_bits: int) -> int:
    """Estimate the file size of a model whose weights are not read: blocks with scales, zero points for short words."""
    weights = {layer.weight: int(np.prod(layer.layout.shape)) for layer in placement.layers}
    each = num_bits / BYTE + (FLOAT_BYTES + (num_bits / BYTE if num_bits < BYTE else 0)) / BLOCK
    return int(weight_bytes(model) + sum(weights.values()) * (each - FLOAT_BYTES))


def blank_plan(placement: Placement, settings: Choices) -> QuantPlan:
    """Make a plan for everything that lies on codes, of the right shapes and without information."""
    zero = np.zeros((), settings.activation.storage_dtype)
    grids = {
        name: QuantParams(np.array(1 + index, np.float32), zero, settings.activation)
        for index, group in enumerate(placement.groups)
        for name in group
    }
    weights = {
        site.name: _blank(np.zeros(rows_and_columns(site), np.int8), settings.choice(site).spec)
        for site in placement.sites
    }
    biases = {
        layer.name: _bias(layer, integer=not layer.adds_bias_in_float and layer.source in grids)
        for layer in placement.layers
        if layer.bias is not None or (not layer.adds_bias_in_float and settings.bias_correction)
    }
    return QuantPlan(grids, weights, biases)


def _blank(codes: NDArray[np.int8], spec: QuantSpec) -> IntegerWeight:
    scale = np.ones(len(codes), np.float32)
    return IntegerWeight.of(codes, QuantParams(scale, np.zeros(len(codes), np.int8), spec))


def _bias(layer: LinearLayer, *, integer: bool) -> BiasEncoding | FloatBias:
    zeros = np.zeros(layer.layout.shape[layer.layout.out_axis], np.float32)
    return BiasEncoding(zeros.astype(np.int32), zeros) if integer else FloatBias(zeros)
