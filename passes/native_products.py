"""Lowering of products to one operator of domain ai.ptq, whose weight is packed as its kernels read it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.spec import PerBlock
from ptq.core.storage import Alphabet, Words
from ptq.passes._qdq import decoder, is_unsigned, only_reader, quantizer, remove_between
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import bias_add, constant, name_of
from ptq.passes.native_bodies import DOMAIN, overload

BYTE = 8
STRIP, LANE = 16, 4
"""Features side by side, and inputs in a dword of bytes; runtime/cpp/matmul_nbits/matmul_nbits.h draws the layout."""


@dataclass(frozen=True)
class Packed:
    """Weight as the operators take it.

    Attributes:
        codes: Packed words, uint8. Shape [ceil(N / 16), groups, 16, 4].
        scale: Real units per code, float32. Shape [ceil(N / 16), blocks, 16].
        table: Value of each code, int8. Shape [2^bits].
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    table: NDArray[np.int8]


@dataclass(frozen=True)
class Fields:
    """Words of a weight as kernels unpack them.

    Attributes:
        words: Integers within -2^(b-1) .. 2^(b-1) - 1. Shape [N, K].
        num_bits: Word length b: 2, 4 or 8.
        table: Value that each word stands for, the smallest first. Shape [2^bits].
    """

    words: NDArray[np.int8]
    num_bits: int
    table: NDArray[np.int8]

    @staticmethod
    def of(weight: WeightEncoding | None, lengths: Collection[int]) -> Fields | None:
        """Return the codes of a weight, or its places in a short alphabet; None where no kernel reads such words.

        Args:
            weight: Weight of the product.
            lengths: Word lengths that there are kernels for. Others would lie in the file as wider ones, and gain
                nothing.
        """
        if not isinstance(weight, IntegerWeight):
            return None
        if isinstance(weight.storage, Words):
            bits = weight.storage.lengths
            return Fields.plain(weight.codes, bits) if isinstance(bits, int) and bits in lengths else None
        fitting = [bits for bits in sorted(lengths) if weight.num_bits <= bits < BYTE]
        return Fields.placed(weight.codes, weight.storage, fitting[0]) if fitting else None

    @staticmethod
    def plain(codes: NDArray[Any], num_bits: int) -> Fields:
        """Make words of codes that stand for themselves."""
        half = 1 << (num_bits - 1)
        return Fields(codes.astype(np.int8), num_bits, np.arange(-half, half).astype(np.int8))

    @staticmethod
    def placed(codes: NDArray[Any], alphabet: Alphabet, num_bits: int) -> Fields:
        """Make words of places in an alphabet."""
        words = alphabet.places(codes).astype(np.int16) - (1 << (num_bits - 1))
        table = np.pad(alphabet.levels, (0, (1 << num_bits) - len(alphabet.levels)), "edge")
        return Fields(words.astype(np.int8), num_bits, table)


def pack_weight(fields: Fields, scale: NDArray[np.float32]) -> Packed:
    """Lay a weight out for the kernels.

    Args:
        fields: Words of the weight.
        scale: Real units per code. Shape [N, blocks].

    Returns:
        The packed weight; what pads it stands for the value of code 0 and is never multiplied with an input.
    """
    per_byte, (rows, columns) = BYTE // fields.num_bits, fields.words.shape
    strips, groups = -(-rows // STRIP), -(-columns // (LANE * per_byte))
    padded = np.zeros((strips * STRIP, groups * per_byte * LANE), np.uint8)
    padded[:rows, :columns] = fields.words.astype(np.int16) + (1 << (fields.num_bits - 1))
    apart = padded.reshape(strips, STRIP, groups, per_byte, LANE).transpose(0, 2, 1, 4, 3)
    shifts = np.arange(0, BYTE, fields.num_bits, dtype=np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(apart << shifts, axis=-1)
    steps = np.ones((strips * STRIP, scale.shape[1]), np.float32)
    steps[:rows] = scale
    by_strip = np.ascontiguousarray(steps.reshape(strips, STRIP, -1).transpose(0, 2, 1))
    return Packed(packed, by_strip, fields.table)


def unpack_weight(
    packed: Packed, shape: tuple[int, int], num_bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Unpack what `pack_weight` laid out.

    Args:
        packed: Weight as an operator takes it.
        shape: Features N and inputs K.
        num_bits: Word length b.

    Returns:
        Values that the words stand for [N, K], and scales [N, blocks].
    """
    (rows, columns), per_byte = shape, BYTE // num_bits
    shifts = np.arange(0, BYTE, num_bits, dtype=np.uint8)
    apart = (packed.codes[..., None] >> shifts) & np.uint8((1 << num_bits) - 1)
    strips, groups = packed.codes.shape[:2]
    places = apart.transpose(0, 2, 1, 4, 3).reshape(strips * STRIP, groups * per_byte * LANE)[:rows, :columns]
    steps = packed.scale.transpose(0, 2, 1).reshape(strips * STRIP, -1)[:rows]
    return packed.table[places], steps


def rewrite_dynamic(graph: ir.Graph, node: ir.Node, encoding: WeightEncoding, words: Collection[int]) -> ir.Node | None:
    """Write a MatMul or Gemm of a float input as one operator that quantizes each row of it by its own range.

    Before: y = Add(MatMul(x, decoded w), bias), or Gemm
    After:  y = DynamicMatMulNBits(x, packed w, scales, table, bias)

    Args:
        graph: Lowered; changed in place.
        node: The product.
        encoding: Weight of the product.
        words: Word lengths of weights that are rewritten.

    Returns:
        The operator, or None where the product stays as it is.
    """
    fields = Fields.of(encoding, words)
    if fields is None or not isinstance(encoding, IntegerWeight):
        return None
    spec, found = encoding.params.spec, _bias(node, encoding.shape[0])
    block = spec.granularity.block_size if isinstance(spec.granularity, PerBlock) else 0
    if found is None or (block and not spec.symmetric):
        return None
    bias, last = found
    attributes = _attributes(fields, block)
    last = _absorb_relu(last, attributes)
    values = _constants(graph, node, pack_weight(fields, encoding.scale if block else _by_row(encoding)), bias)
    form = overload(blocks=block > 0, clipped="min" in attributes)
    made = ir.node("DynamicMatMulNBits", [node.inputs[0], *values], attributes, domain=DOMAIN, name="", overload=form)
    _take_place(graph, node, last, made)
    return made


def _by_row(encoding: IntegerWeight) -> NDArray[np.float32]:
    """Return one scale for each feature. Shape [N, 1]."""
    return np.broadcast_to(encoding.scale.reshape(-1, 1), (encoding.shape[0], 1))


def _attributes(fields: Fields, block: int) -> dict[str, Any]:
    features, inputs = fields.words.shape
    return {"N": features, "K": inputs, "bits": fields.num_bits, "block_size": block}


def _constants(graph: ir.Graph, node: ir.Node, weight: Packed, bias: NDArray[np.float32]) -> list[ir.Value]:
    """Add packed weight, scales, table and bias of an operator."""
    arrays: dict[str, NDArray[Any]] = {
        "weight": weight.codes,
        "weight_scale": weight.scale,
        "weight_table": weight.table,
        "bias": bias,
    }
    name = name_of(node)
    return [add_initializer(graph, fresh_name(graph, f"{name}_{key}"), array) for key, array in arrays.items()]


def _take_place(graph: ir.Graph, node: ir.Node, last: ir.Node, made: ir.Node) -> None:
    """Put an operator in the place of a product and what follows it, up to `last`."""
    old, new = last.outputs[0], made.outputs[0]
    graph.insert_after(last, made)
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    kept, old.name = old.name, None
    new.name = kept
    remove_between(graph, node, last)


def rewrite_product(
    graph: ir.Graph, node: ir.Node, encoding: WeightEncoding | None, words: Collection[int]
) -> ir.Node | None:
    """Write a MatMul or Gemm between Q/DQ pairs, with its bias and what follows, as one operator.

    Before: y = [Q](Sum(MatMul(DQ(x), DQ(w)), bias)), or Gemm
    After:  y = QLinearMatMulNBits[ToFloat](x, ..., packed w, scales, table, bias, ...)

    Args:
        graph: Lowered; changed in place.
        node: The product.
        encoding: Weight of the product.
        words: Word lengths of weights that are rewritten.

    Returns:
        The operator, or None where the product stays as it is.
    """
    source, fields = decoder(node.inputs[0]), Fields.of(encoding, words)
    if fields is None or not isinstance(encoding, IntegerWeight):
        return None
    if source is None or not is_unsigned(source) or decoder(node.inputs[1]) is None:
        return None
    found = _bias(node, encoding.shape[0])
    if found is None:
        return None
    bias, last = found
    values = _constants(graph, node, pack_weight(fields, _by_row(encoding)), bias)
    attributes = _attributes(fields, 0)
    end = quantizer(last)
    if end is not None and is_unsigned(end):
        op_type, grid, last = "QLinearMatMulNBits", list(end.inputs[1:3]), end
    else:
        op_type, grid = "QLinearMatMulNBitsToFloat", []
        last = _absorb_relu(last, attributes)
    form = overload(clipped="min" in attributes)
    made = ir.node(op_type, [*source.inputs[:3], *values, *grid], attributes, domain=DOMAIN, name="", overload=form)
    _take_place(graph, node, last, made)
    return made


def _bias(node: ir.Node, features: int) -> tuple[NDArray[np.float32], ir.Node] | None:
    """Find what is added to a product, and the node that adds it; None if that is nothing constant."""
    if node.op_type == "Gemm":
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None:
            return np.zeros(features, np.float32), node
        pair = decoder(given)
        parts = [constant(value) for value in (pair.inputs[:2] if pair is not None else [given])]
        if any(part is None for part in parts):
            return None
        values = np.prod([np.asarray(part, np.float64) for part in parts], axis=0) if pair is not None else parts[0]
        return np.asarray(values, np.float32).reshape(features), node
    add = bias_add(node)
    for value in add.inputs if add is not None else ():
        values = constant(value)
        if add is not None and values is not None and values.dtype == np.float32 and values.shape == (features,):
            return values, add
    return np.zeros(features, np.float32), node


def _absorb_relu(last: ir.Node, attributes: dict[str, Any]) -> ir.Node:
    """Make a Relu behind the product the operator's lower end."""
    reader = only_reader(last)
    if reader is None or reader.op_type != "Relu" or reader.domain:
        return last
    attributes |= {"min": 0.0, "max": float(np.finfo(np.float32).max)}
    return reader
