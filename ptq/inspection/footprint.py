"""How large the quantized file will be, without solving anything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.encoding import IntegerWeight
from ptq.core.layer import LinearLayer
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.spec import PerAxis, QuantSpec
from ptq.delivery.deliver import pack
from ptq.models.source import weight_bytes
from ptq.passes.graph import initializer_of
from ptq.passes.normalize import INT4_OPSET
from ptq.passes.placement import Placement
from ptq.pipeline import lower
from ptq.recipe import Recipe, Weights
from ptq.solving.choices import Choices, choices_of
from ptq.solving.plan import BYTE, MORE_BITS
from ptq.solving.streaming import BLOCK
from ptq.target import Target

FLOAT_BYTES = 4


def file_bytes(model: ir.Model, placement: Placement, target: Target, num_bits: int) -> int:
    """Size that the quantized file will have, by lowering the model to codes that are all 0: they take as much room.

    Splits, longer words and what channels gain by being evened out are not in it.

    Args:
        model: Prepared float model. Not modified.
        placement: What becomes integers.
        target: Where it will run.
        num_bits: Word length of the weights.
    """
    settings = choices_of(Recipe(weights=Weights(bits=num_bits)), target, model)
    copy = model.clone()
    if num_bits < BYTE and copy.opset_imports.get("", 0) < INT4_OPSET:
        copy.opset_imports[""] = INT4_OPSET
        _drop_notes(copy)
    tables = {table.name: initializer_of(model, table.name).shape for table in placement.tables}
    lowered = lower(copy, placement, blank_plan(placement, settings, tables), target)
    return pack(lowered, {"ptq.float_sha256": "0" * 64}).num_bytes


def _drop_notes(model: ir.Model) -> None:
    """As ONNX's version converter does, whose other work changes no sizes and takes a second per 100 MB."""
    for carrier in (model.graph, *model.graph, *model.graph.inputs, *model.graph.outputs):
        carrier.metadata_props.clear()


def huge_file_bytes(model: ir.Model, placement: Placement, num_bits: int) -> int:
    """The same for a model whose weights are not read: codes in blocks with a scale, zero points for short words."""
    weights = {layer.weight: int(np.prod(layer.layout.shape)) for layer in placement.layers}
    each = num_bits / BYTE + (FLOAT_BYTES + (num_bits / BYTE if num_bits < BYTE else 0)) / BLOCK
    return int(weight_bytes(model) + sum(weights.values()) * (each - FLOAT_BYTES))


def blank_plan(placement: Placement, settings: Choices, table_shapes: Mapping[str, tuple[int, ...]]) -> QuantPlan:
    """A decision about everything that has the right shapes and says nothing."""
    zero = np.zeros((), settings.activation.storage_dtype)
    grids = {
        name: QuantParams(np.array(1 + index, np.float32), zero, settings.activation)
        for index, group in enumerate(placement.groups)
        for name in group
    }
    weights = {
        layer.name: _blank(layer.layout.to_matrix(np.zeros(layer.layout.shape, np.int8)), settings.choice(layer).spec)
        for layer in placement.layers
    }
    biases = {
        layer.name: _bias(layer, integer=layer.op_type != "MatMul" and layer.source in grids)
        for layer in placement.layers
        if layer.bias is not None or (layer.op_type != "MatMul" and settings.bias_correction)
    }
    spec = QuantSpec(min(settings.weights.spec.num_bits + MORE_BITS, BYTE), signed=True, granularity=PerAxis(0))
    tables = {name: _blank(np.zeros(shape, np.int8), spec) for name, shape in table_shapes.items()}
    stored = {each.name: _blank(each.to_matrix(np.zeros(each.shape, np.int8)), spec) for each in placement.stored}
    return QuantPlan(grids, weights, biases, tables, stored)


def _blank(codes: NDArray[np.int8], spec: QuantSpec) -> IntegerWeight:
    scale = np.ones(len(codes), np.float32)
    return IntegerWeight.of(codes, QuantParams(scale, np.zeros(len(codes), np.int8), spec))


def _bias(layer: LinearLayer, *, integer: bool) -> BiasEncoding | FloatBias:
    zeros = np.zeros(layer.layout.shape[layer.layout.out_axis], np.float32)
    return BiasEncoding(zeros.astype(np.int32), zeros) if integer else FloatBias(zeros)
