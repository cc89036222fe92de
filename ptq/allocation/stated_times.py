"""Times of the nodes of a graph by stated rates of kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.allocation.divide import NodeTimes
from ptq.core.kernel_costs import KernelCosts, Rates, Work
from ptq.passes.linear import constant, name_of
from ptq.target import INTEGER_OPS

Shape = tuple[int, ...]

VECTOR = 16
"""Channels that a vector holds: kernels fill the last one of a layer."""


CHANNELS_LAST = frozenset({"Add", "Clip", "Concat", "LeakyRelu", "MaxPool", "Mul", "Relu", "Sigmoid"})
"""Operators that onnxruntime lets work on codes with channels last, if all their inputs are that."""


def stated_times(model: ir.Model, shapes: Mapping[str, Shape], costs: KernelCosts) -> NodeTimes:
    """Estimate the microseconds of every node, in float and on codes.

    Args:
        model: Prepared float model.
        shapes: Shapes of its values; nodes with unknown ones take no time.
        costs: Stated rates.
    """
    works = {name_of(node): (node, work_of(node, shapes)) for node in model.graph if not node.domain}
    return NodeTimes(
        {name: _time(costs.floats, work) for name, (node, work) in works.items() if not _is_taken_in(node)},
        {name: _time(costs.integers, work) for name, (_, work) in works.items()},
    )


def work_of(node: ir.Node, shapes: Mapping[str, Shape]) -> Work:
    """Count what a node does."""
    out = shapes.get(name_of(node), ())
    values = math.prod(out) if out else 0
    weight = next((array for v in node.inputs[:2] if (array := constant(v)) is not None and array.ndim > 1), None)
    if node.op_type not in INTEGER_OPS or not values:
        source = shapes.get(str(node.inputs[0].name), ()) if node.inputs and node.inputs[0] is not None else ()
        pooled = node.op_type == "GlobalAveragePool" and source
        return Work(_kind(node), math.prod(source) if pooled else values)
    if node.op_type != "Conv":
        inner = shapes.get(str(node.inputs[0].name), (1,))[-1] if node.inputs[0] is not None else 1
        return Work("dense", values, values * inner, 0 if weight is None else weight.size)
    if weight is None:
        return Work("dense", values)
    return _of_conv(node, weight, values)


def _kind(node: ir.Node) -> str:
    """Name the kernel of a node: pooling of codes is fast only where all that it comes from has channels last."""
    return "MaxPool apart" if node.op_type == "MaxPool" and not _has_channels_last(node.inputs[0]) else node.op_type


def _has_channels_last(value: ir.Value | None) -> bool:
    """Whether onnxruntime finds codes with channels last, as its convolutions leave them."""
    stack, seen = [value], set[ir.Value | None]()
    while stack:
        source = stack.pop()
        node = None if source is None else source.producer()
        if node is None or node.domain or node.op_type not in CHANNELS_LAST | {"Conv"}:
            return False
        if source not in seen and node.op_type != "Conv":
            stack += [each for each in node.inputs if constant(each) is None]
        seen.add(source)
    return True


def _of_conv(node: ir.Node, weight: NDArray[Any], values: int) -> Work:
    """Count what a convolution does for so many results."""
    features, inputs, places = len(weight), weight.shape[1], math.prod(weight.shape[2:])
    groups, windows, left = node.attributes.get_int("group", 1), values // features, features % VECTOR
    full = windows * VECTOR
    if groups > 1 and inputs == 1 and groups == features:
        padded = full * -(-features // VECTOR)
        return Work("depthwise", padded, padded * places, 0, windows * places, 0, windows * left)
    edges = windows * (3 if left % 4 else 1) if left else 0
    taps, padded = windows * places if places > 1 else 0, full * -(-features // VECTOR)
    rest = values if left else 0
    return Work("dense" if groups == 1 else "grouped", padded, padded * inputs * places, weight.size, taps, edges, rest)


def _time(rates: Mapping[str, Rates], work: Work) -> float:
    return rates[work.kind].microseconds(work) if work.kind in rates and work.values else 0.0


def _is_taken_in(node: ir.Node) -> bool:
    """Whether the float kernel in front of a node computes it as well."""
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return node.op_type in ("Relu", "Clip") and source is not None and source.op_type in (*INTEGER_OPS, "Add")
