"""Inverse of lowering: the weights of a graph on integers, whatever form they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.encoding import IntegerWeight, LookupWeight, WeightEncoding
from ptq.core.matrix import WeightLayout
from ptq.core.spec import Granularity, PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.passes._qdq import quantizer
from ptq.passes.decoding import Decoding, arrays_of, constants, decoding_of, picked_rows
from ptq.passes.integer_lstm import INTEGER_LSTM
from ptq.passes.linear import name_of, out_axis
from ptq.passes.native_bodies import CENTER, CONV, DOMAIN, PRODUCTS
from ptq.passes.native_products import Packed, unpack_weight
from ptq.passes.stored import StoredWeight, scaled_axes, weights_inside
from ptq.target import LINEAR_OPS

Array = NDArray[Any]
Fixed = Mapping[ir.Value, bool]
"""Values that do not depend on an input -> whether they come out of codes."""

LSTM_WEIGHTS = {"W": (1, 8), "R": (2, 10)}
"""Role -> which inputs of onnxruntime's LSTM on integers are its codes and its scales."""


@dataclass(frozen=True)
class _Site:
    """Place of a weight to be read: constants, and what they come to."""

    name: str
    parts: tuple[ir.Value | None, ...]
    build: Callable[..., WeightEncoding]


def weights_of(model: ir.Model, custom_ops: Sequence[str | Path] = ()) -> dict[str, WeightEncoding]:
    """Read the weights of a lowered model.

    Args:
        model: As lowering leaves it, in memory or from a file. Not modified.
        custom_ops: Libraries that decoding needs.

    Returns:
        Layer, embedding table or stored weight, by name -> its weight; what is float is left out. A weight whose LSTM
        runs on integers is called after the layer, with `_W` or `_R`. Words are as long as their codes need: how they
        lie in the file is not told.
    """
    fixed = constants(model.graph)
    sites = {site.name: site for node in model.graph.all_nodes() for site in _sites(node, fixed)}
    arrays = arrays_of(
        model, {value for site in sites.values() for value in site.parts if value is not None}, custom_ops
    )
    return {
        name: site.build(*(None if value is None else arrays[value] for value in site.parts))
        for name, site in sites.items()
    }


def has_weights(model: ir.Model) -> bool:
    """Whether `weights_of` would find any; nothing is computed."""
    fixed = constants(model.graph)
    return any(True for node in model.graph.all_nodes() for _ in _sites(node, fixed))


def _sites(node: ir.Node, fixed: Fixed) -> Iterator[_Site]:
    if node.domain == DOMAIN:
        yield from _convolution(node) if node.op_type in (CONV, CENTER) else _product(node)
    elif node.op_type == INTEGER_LSTM:
        for role, (codes, scale) in LSTM_WEIGHTS.items():
            yield _Site(f"{name_of(node)}_{role}", (node.inputs[codes], node.inputs[scale]), _gates)
    elif node.op_type == "MatMulInteger":
        yield from _at_run_time(node, fixed)
    elif any(True for _ in weights_inside(node)):
        for value, axes in weights_inside(node):
            yield from _stored(value, fixed, axes)
    elif node.op_type in LINEAR_OPS:
        yield from _linear(node, fixed)
    else:
        yield from _table(node, fixed)


def _linear(node: ir.Node, fixed: Fixed) -> Iterator[_Site]:
    """Find a layer that reads a decoded weight; inside bodies the weight has a name of its own."""
    for index in (1, 0) if node.op_type == "MatMul" else (1,):
        value = node.inputs[index] if index < len(node.inputs) else None
        found = decoding_of(value)
        if value is None or found is None or found.codes not in fixed:
            continue
        axis = out_axis(node, index)
        if found.axis not in (None, axis):
            continue
        rank = 0 if found.scale.shape is None else len(found.scale.shape)
        if node.op_type == "MatMul" and rank > 2:
            yield from _stored(value, fixed, scaled_axes(node, index, rank))
        elif node.graph is not value.graph:
            yield from _stored(value, fixed, (axis,))
        else:
            yield _Site(_called(node), (found.codes, found.scale, found.zero), _of_layer(found, axis))
        return


def _of_layer(found: Decoding, axis: int) -> Callable[[Array, Array, Array | None], WeightEncoding]:
    """Return what the codes, scales and zero points of a layer come to."""

    def build(codes: Array, scale: Array, zero: Array | None) -> WeightEncoding:
        matrix, size = WeightLayout(axis, codes.shape).to_matrix(codes), found.block_size
        if found.is_table:
            return _lookup(matrix, scale)
        if not size:
            return _integers(matrix, scale, zero)
        turned = axis == 1
        return _integers(
            matrix, scale.T if turned else scale, zero.T if zero is not None and turned else zero, PerBlock(1, size)
        )

    return build


def _stored(value: ir.Value | None, fixed: Fixed, axes: tuple[int, ...]) -> Iterator[_Site]:
    """Find a weight that float kernels read, with a scale for every position along some axes."""
    found = decoding_of(value)
    if value is None or found is None or found.codes not in fixed:
        return

    def build(codes: Array, scale: Array) -> WeightEncoding:
        own = tuple(axis for axis, n in enumerate(scale.shape) if n == codes.shape[axis]) if len(axes) > 1 else axes
        fits = scale.ndim == codes.ndim and np.prod([codes.shape[axis] for axis in own]) == scale.size
        matrix = StoredWeight("", codes.shape, own if fits else axes).to_matrix(codes)
        return _lookup(matrix, scale) if found.is_table else _integers(matrix, scale)

    yield _Site(str(value.name).removesuffix("_decoded"), (found.codes, found.scale), build)


def _table(node: ir.Node, fixed: Fixed) -> Iterator[_Site]:
    """Find an embedding table whose rows are picked, as codes or as reals."""
    picked = picked_rows(node)
    if picked is not None and picked.codes in fixed and picked.index not in fixed:
        yield _Site(str(picked.codes.name).removesuffix("_quantized"), (picked.codes, picked.scale), _integers)
    elif node.op_type == "Gather" and node.inputs[1] not in fixed:
        found = decoding_of(node.inputs[0])
        if found is not None and found.is_table and found.codes in fixed and node.inputs[0] is not None:
            yield _Site(str(node.inputs[0].name).removesuffix("_decoded"), (found.codes, found.scale), _lookup)


def _at_run_time(node: ir.Node, fixed: Fixed) -> Iterator[_Site]:
    """Find a product whose input gets its range at run time: MatMulInteger, Cast, Mul with both scales."""
    wide = next((use.node for use in node.outputs[0].uses() if use.node.op_type == "Cast"), None)
    product = next((use.node for use in wide.outputs[0].uses() if use.node.op_type == "Mul"), None) if wide else None
    steps = product.inputs[1].producer() if product is not None and product.inputs[1] is not None else None
    scale = next((value for value in steps.inputs if value in fixed), None) if steps is not None else None
    if node.inputs[1] in fixed and scale is not None:
        name = str(node.outputs[0].name).removesuffix("_int32")
        yield _Site(name, (node.inputs[1], scale), lambda codes, steps: _integers(codes.T, steps))


def _convolution(node: ir.Node) -> Iterator[_Site]:
    """Find operators of our own that hold a convolution, or two of them."""
    name = name_of(node).removesuffix("_conv")

    def build(codes: Array, scale: Array) -> WeightEncoding:
        return _integers(codes.reshape(len(codes), -1), scale)

    yield _Site(name, (node.inputs[3], node.inputs[4]), build)
    if node.op_type == CENTER:
        yield _Site(f"{name.removesuffix('_fine')}_coarse", (node.inputs[8], node.inputs[9]), build)


def _product(node: ir.Node) -> Iterator[_Site]:
    """Find operators of our own that hold a packed product."""
    if node.op_type not in PRODUCTS:
        return
    names = ["N", "K", "bits", "block_size"]
    features, inputs, bits, size = (node.attributes.get_int(name, 0) for name in names)
    at = PRODUCTS[node.op_type][0].split(", ").index("w")
    granularity = PerBlock(1, size) if size else PerAxis(0)

    def build(codes: Array, scale: Array, table: Array) -> WeightEncoding:
        matrix, steps = unpack_weight(Packed(codes, scale, table), (features, inputs), bits)
        return _integers(matrix, steps, None, granularity)

    yield _Site(str(node.inputs[at].name).removesuffix("_weight"), tuple(node.inputs[at : at + 3]), build)  # type: ignore[union-attr]


def _gates(codes: Array, scale: Array) -> WeightEncoding:
    """Arrange codes [directions, in, gates] as rows of gates."""
    return _integers(np.swapaxes(codes, 1, 2).reshape(-1, codes.shape[1]), scale)


def _integers(
    matrix: Array, scale: Array, zero: Array | None = None, granularity: Granularity | None = None
) -> IntegerWeight:
    """Make integers and their grid a weight; without blocks there is one scale for all, or one for each row."""
    if granularity is None or not isinstance(granularity, PerBlock):
        granularity = PerTensor() if scale.ndim == 0 else PerAxis(0)
        scale = scale.reshape(() if scale.ndim == 0 else (-1,))
    codes = matrix.astype(np.int8 if matrix.dtype != np.uint8 else np.uint8)
    zeros = np.zeros(scale.shape, codes.dtype) if zero is None else zero.reshape(scale.shape).astype(codes.dtype)
    spec = QuantSpec(_shortest(codes), codes.dtype == np.int8, not zeros.any(), granularity=granularity)
    return IntegerWeight.of(codes, QuantParams(scale.astype(np.float32), zeros, spec))


def _lookup(indices: Array, table: Array) -> LookupWeight:
    """Make places in a table a weight; negative ones are counted from its end."""
    ascending, place = np.unique(table, return_inverse=True)
    return LookupWeight(place.reshape(-1)[indices % len(table)].astype(np.uint8), ascending.astype(np.float32))


def _shortest(codes: Array) -> int:
    """Return the bits of the shortest word, 2 at least, that holds all codes."""
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    signed = codes.dtype == np.int8
    return max(2, max(high, -low - 1).bit_length() + signed)


def _called(node: ir.Node) -> str:
    """Return a layer's name: its first output, or the output of the model that it is rounded to."""
    end = quantizer(node)
    for use in end.outputs[0].uses() if end is not None else ():
        if use.node.op_type == "DequantizeLinear" and use.node.outputs[0].is_graph_output():
            return str(use.node.outputs[0].name)
    return name_of(node)
