"""Links of operators that compute number by number, or keep some axes apart: activations, sums, norms, pools."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ptq.passes.channels.links import Axis, Link, alike, extent, one_to_one, positive, rank
from ptq.passes.linear import constant

UNARY = frozenset({
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
})  # fmt: skip
BROADCAST = frozenset({
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
POOLS = frozenset({
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "Upsample",
})  # fmt: skip
REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip


def unary(node: ir.Node) -> Iterator[Link]:
    """Link each axis of the input to that of the output."""
    source = node.inputs[0]
    if source is not None:
        yield from alike(source, node.outputs[0])


def broadcast(node: ir.Node) -> Iterator[Link]:
    """Link the axes that inputs have in common with the output, counted from the back; an extent of 1 goes with any."""
    out = node.outputs[0]
    for value in node.inputs:
        own, behind = rank(value), rank(out)
        if value is not None and own is not None and behind is not None:
            for axis in range(own):
                yield from one_to_one(Axis(value, axis), Axis(out, axis + behind - own))


def per_channel(node: ir.Node) -> Iterator[Link]:
    """Link the channels of a norm's input, output and parameters, and the samples."""
    source, out = node.inputs[0], node.outputs[0]
    if source is None:
        return
    yield from one_to_one(Axis(source, 0), Axis(out, 0))
    yield from one_to_one(Axis(source, 1), Axis(out, 1))
    for parameter in node.inputs[1:]:
        if parameter is not None:
            yield from one_to_one(Axis(parameter, 0), Axis(out, 1))


def pool(node: ir.Node) -> Iterator[Link]:
    """Link samples and channels of a pool."""
    source = node.inputs[0]
    if source is not None and len(node.outputs) == 1:
        for axis in (0, 1):
            yield from one_to_one(Axis(source, axis), Axis(node.outputs[0], axis))


def along(node: ir.Node) -> Iterator[Link]:
    """Link all axes but the one that Softmax and its kind normalize along."""
    source, default = node.inputs[0], -1
    if source is not None and rank(source) is not None:
        axis = positive(node.attributes.get_int("axis", default), source)
        yield from alike(source, node.outputs[0], frozenset({axis}))


def over_last(node: ir.Node) -> Iterator[Link]:
    """Link the axes in front of those that a LayerNormalization takes together."""
    source = node.inputs[0]
    if source is not None and rank(source) is not None:
        first = positive(node.attributes.get_int("axis", -1), source)
        yield from alike(source, node.outputs[0], frozenset(range(first, rank(source) or 0)))


def reduce(node: ir.Node) -> Iterator[Link]:
    """Link the axes that a reduction leaves."""
    source, out = node.inputs[0], node.outputs[0]
    known = rank(source)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    listed = constant(given)
    if source is None or known is None or (given is not None and listed is None):
        return
    axes = [int(each) for each in listed.reshape(-1)] if listed is not None else node.attributes.get_ints("axes", ())
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        yield from alike(source, out)
    reduced = {each % known for each in axes} if axes else set(range(known))
    place = 0
    for axis in range(known):
        if axis not in reduced:
            yield from one_to_one(Axis(source, axis), Axis(out, place))
        place += axis not in reduced or bool(node.attributes.get_int("keepdims", 1))


def pad(node: ir.Node) -> Iterator[Link]:
    """Link the axes that nothing is padded to."""
    source, pads = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or pads is None or len(node.inputs) > 3 or rank(source) is None:
        return
    for axis, ends in enumerate(pads.reshape(2, -1).T.tolist()):
        if not any(ends) and extent(Axis(source, axis)) is not None:
            yield from one_to_one(Axis(source, axis), Axis(node.outputs[0], axis))
