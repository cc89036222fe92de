"""Fold constant factors and shifts of channels into the linear layer before them.

Converters write batch normalization, and biases, as products and sums with constants. With g and s per output channel:

    g (W x + b) + s = (g W) x + (g b + s)

so the node disappears, and the layer may end on the integer grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant, is_float32

LINEAR = ("Conv", "ConvTranspose", "Gemm")
"""Operators with a bias. A MatMul has none: its factors are mostly those of attention, which fused kernels want."""

AFFINE = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class FoldAffine(ir.passes.InPlacePass):
    """Fold Mul, Div, Add and Sub with a constant per channel, or one for all, into Conv, ConvTranspose or Gemm.

    Before: y = Add(Mul(Conv(x, W, b), g), s)
    After:  y = Conv(x, g W, g b + s)
    Requires: constant float32 weights that nothing else uses; what is between is read by nothing else.
    Preserves float outputs: yes, within 1e-5.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold everything that folds; the rest stays as it is."""
        nodes = [node for node in model.graph if node.op_type in AFFINE and not node.domain]
        folded = [_fold(model.graph, node) for node in nodes]
        return ir.passes.PassResult(model, any(folded))


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    """Fold one node, in the order of the graph: what follows then finds the linear layer before it."""
    made = next((value for value in node.inputs if _is_linear_alone(value)), None)
    product = None if made is None else made.producer()
    folded = None if product is None else _folded(node, product)
    if made is None or product is None or folded is None:
        return False
    name, out = str(node.outputs[0].name), node.outputs[0]
    product.resize_inputs(3)
    for index, what, numbers in ((1, "weight", folded[0]), (2, "bias", folded[1])):
        product.replace_input_with(index, add_initializer(graph, fresh_name(graph, f"{name}_folded_{what}"), numbers))
    ir.convenience.replace_all_uses_with(out, made, replace_graph_outputs=True)
    out.name, made.name = None, name
    graph.remove(node, safe=True)
    return True


def _folded(node: ir.Node, product: ir.Node) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the weight and the bias that a node and the layer before it come to; None if they do not fold."""
    first = node.inputs[0] is product.outputs[0]
    weight, numbers = constant(product.inputs[1]), constant(node.inputs[1 if first else 0])
    if weight is None or numbers is None:
        return None
    channels = _num_channels(product, weight)
    bias, each = _bias(product, channels), per_channel(numbers, weight.ndim, channels)
    if bias is None or each is None:
        return None
    with np.errstate(all="ignore"):
        factor, shift = factor_and_shift(node, each, first=first)
        scaled = _times(product, weight, factor)
        moved = (bias * factor + shift).astype(np.float32)
    return (scaled, moved) if np.isfinite(scaled).all() and np.isfinite(moved).all() else None


def _is_linear_alone(value: ir.Value | None) -> bool:
    """Tell whether a value comes from a linear layer, and goes to one place only."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type not in LINEAR or node.domain or value.is_graph_output():
        return False
    weight = node.inputs[1]
    alone = len(value.uses()) == 1 and weight is not None and len(weight.uses()) == 1
    factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    return alone and is_float32(weight) and factors == (1.0, 1.0)


def _bias(node: ir.Node, channels: int) -> NDArray[np.float64] | None:
    """Return the bias, 0 where there is none; None where it is not a constant number per channel, as of some Gemms."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    numbers = constant(value)
    return None if numbers is None else per_channel(numbers, 2, channels)


def _num_channels(node: ir.Node, weight: NDArray[np.float32]) -> int:
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    return int(weight.shape[1 if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0) else 0])


def per_channel(numbers: NDArray[np.float32], rank: int, channels: int) -> NDArray[np.float64] | None:
    """Return a constant as one number per channel (axis 1); None if it has other axes, or more than the value."""
    if numbers.ndim > rank:
        return None
    shape = (1,) * (rank - numbers.ndim) + numbers.shape
    if shape[0] != 1 or any(extent != 1 for extent in shape[2:]) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(numbers.reshape(-1).astype(np.float64), (channels,))


def factor_and_shift(
    node: ir.Node, numbers: NDArray[np.float64], *, first: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what a node multiplies by, then adds. `first`: its value comes first; NaN where it divides by that."""
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    forms = {
        "Mul": (numbers, zeros),
        "Div": (1.0 / numbers if first else ones * np.nan, zeros),
        "Add": (ones, numbers),
        "Sub": (ones, -numbers) if first else (-ones, numbers),
    }
    return forms[node.op_type]


def _times(node: ir.Node, weight: NDArray[np.float32], factor: NDArray[np.float64]) -> NDArray[np.float32]:
    """Multiply a weight by a factor per output channel."""
    if node.op_type == "Gemm":
        by = factor if not node.attributes.get_int("transB", 0) else factor[:, None]
    elif node.op_type == "Conv":
        by = factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # input channels x output channels of a group x kernel
        groups = node.attributes.get_int("group", 1)
        rows = np.repeat(factor.reshape(groups, -1), len(weight) // groups, axis=0)
        by = rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
    return (weight * by).astype(np.float32)
