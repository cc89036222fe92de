"""Lowering of weights that no integer kernel multiplies: embedding tables, and those of recurrent layers and bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.encoding import LookupWeight, WeightEncoding
from ptq.core.plan import FloatBias
from ptq.passes._guards import take_over
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import name_of
from ptq.passes.lower_weight import WeightWriter
from ptq.passes.stored import StoredWeight, value_in


def lower_table(
    weights: WeightWriter, name: str, readers: Sequence[ir.Node], table: WeightEncoding
) -> dict[str, ir.Value]:
    """Pick rows of codes and their scales instead of floats.

    Before: y = Gather(table, i)
    After:  y = Mul(Cast(Gather(codes, i)), Cast(Gather(scales, i))), scales of 16 bits where these hold them; rows of
            a table of reals are picked as they are, once these are decoded

    Args:
        weights: Writer into the graph.
        name: Name of the table.
        readers: Nodes that pick its rows, each in whatever graph it is.
        table: Rows of the table.

    Returns:
        Name of each reader -> value that stands for its result.
    """
    if isinstance(table, LookupWeight):
        reals = weights.rows(name, table)
        for node in readers:
            node.replace_input_with(0, reals)
        return {name_of(node): node.outputs[0] for node in readers}
    codes = weights.rows(name, table)
    scale = weights.writer.initializer(f"{name}_scale", short_scale(table.scale).reshape(-1, 1))
    return {reader: _pick(weights, reader, node, (codes, scale)) for node in readers if (reader := name_of(node))}


def lower_stored(weights: WeightWriter, model: ir.Model, weight: StoredWeight, encoding: WeightEncoding) -> None:
    """Let float kernels, of bodies too, read codes times scales that are computed in front of everything.

    Args:
        weights: Writer into the main graph of `model`.
        model: Model that is changed in place.
        weight: Constant that is replaced.
        encoding: Weight on codes that it becomes.
    """
    value, layout = value_in(model, weight.name), weight.layout
    shape = [weight.shape[axis] for axis in weight.order]
    if isinstance(encoding, LookupWeight):
        decoded = _turned(weights, weight, weights.reals(f"{weight.name}_decoded", layout, encoding, shape))
    else:
        codes = _turned(weights, weight, weights.codes(f"{weight.name}_quantized", layout, encoding, shape))
        decoded = weights.multiplied(weight.name, codes, weight.along(encoding.scale))
    ir.convenience.replace_all_uses_with(value, decoded)
    if value.is_initializer() and value.graph is not None:
        del value.graph.initializers[weight.name]


def lower_float_bias(graph: ir.Graph, node: ir.Node, bias: FloatBias) -> None:
    """Give a layer on a float kernel the bias that takes up the mean error of its weight on codes."""
    name = fresh_name(graph, f"{name_of(node)}_bias")
    node.resize_inputs(max(len(node.inputs), 3))
    node.replace_input_with(2, add_initializer(graph, name, bias.values))


def _turned(weights: WeightWriter, weight: StoredWeight, value: ir.Value) -> ir.Value:
    """Bring axes that have scales back to their places."""
    back = tuple(int(axis) for axis in np.argsort(weight.order))
    if back == tuple(range(len(back))):
        return value
    turned = weights.writer.node(
        "Transpose", [value], f"{weight.name}_turned", (value.dtype, ir.Shape(weight.shape)), {"perm": list(back)}
    )
    weights.writer.compute_first(turned)
    return turned


def _pick(weights: WeightWriter, name: str, node: ir.Node, parts: tuple[ir.Value, ir.Value]) -> ir.Value:
    """Replace one reader of a table."""
    writer, (codes, scale), index, shape = weights.writer, parts, node.inputs[1], node.outputs[0].shape
    rows = writer.node("Gather", [codes, index], f"{name}_codes", (ir.DataType.INT8, shape))
    wide = writer.node("Cast", [rows], f"{name}_wide", (ir.DataType.FLOAT, shape), {"to": 1})
    short = writer.node("Gather", [scale, index], f"{name}_scale", (scale.dtype, None))
    steps = writer.node("Cast", [short], f"{name}_step", (ir.DataType.FLOAT, None), {"to": 1})
    product = writer.node("Mul", [wide, steps], f"{name}_row", (ir.DataType.FLOAT, shape))
    made = [each for value in (rows, wide, short, steps, product) if (each := value.producer()) is not None]
    graph = node.graph
    assert graph is not None  # a reader of the graph that is lowered
    graph.insert_before(node, made)
    take_over(node.outputs[0], product)
    writer.first = made[0] if writer.first is node else writer.first
    graph.remove(node, safe=True)
    return product


def short_scale(scale: NDArray[np.float32]) -> NDArray[Any]:
    """Return scales as float16 where that is precise enough: 11 bits, next to words of 8, are."""
    smallest, largest = np.finfo(np.float16).smallest_normal, np.finfo(np.float16).max
    return scale.astype(np.float16) if scale.min() >= smallest and scale.max() <= largest else scale
