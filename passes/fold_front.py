"""Fold constant factors and shifts in front of convolutions into them.

A factor of a channel commutes with the zeros around an image; a shift does not, and goes in where none are added:

    W (g x) = (W g) x        W (x + s) + b = W x + (b + W s)

A shift that has to stay lets factors through: g x + s = g (x + s / g).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.fold_affine import AFFINE, factor_and_shift, per_channel
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant, is_float32
from ptq.passes.rewire import drop_unread, stand_in

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class FoldFront(ir.passes.InPlacePass):
    """Fold Mul, Div, Add and Sub with a constant per channel, or one for all, into the Convs that read the result.

    Before: y = Conv(Add(Mul(x, g), s), W, b)
    After:  y = Conv(x, W g, b + W s); with pads, y = Conv(Add(x, s / g), W g, b)
    Requires: constant float32 weights and biases that nothing else uses; nothing but Convs reads the result.
    Preserves float outputs: yes, within 1e-5.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold from the end of the graph, so that what is nearest to a Conv goes in first."""
        nodes = [node for node in model.graph if node.op_type in AFFINE and not node.domain]
        changed = [_fold(model.graph, node) for node in reversed(nodes)]
        return ir.passes.PassResult(model, any(changed))


@dataclass(frozen=True)
class _Step:
    """A product or sum with a constant in front of convolutions: what they read is `factor * source + shift`."""

    source: ir.Value
    factor: Numbers
    shift: Numbers
    convs: tuple[ir.Node, ...]


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    step = _read(node)
    if step is None:
        return False
    if step.shift.any() and not all(_is_unpadded(conv) for conv in step.convs):
        return _pull_factor(graph, node, step)
    for conv in step.convs:
        _absorb(graph, conv, step)
        conv.replace_input_with(0, step.source)
    drop_unread(graph, [node.outputs[0]])
    return True


def _read(node: ir.Node) -> _Step | None:
    """Read a node whose constant convolutions can take in; None for others."""
    first = constant(node.inputs[0]) is None
    source, numbers = node.inputs[0 if first else 1], constant(node.inputs[1 if first else 0])
    convs = tuple(dict.fromkeys(use.node for use in node.outputs[0].uses()))
    if source is None or constant(source) is not None or numbers is None or numbers.dtype != np.float32:
        return None
    if not convs or node.outputs[0].is_graph_output() or not all(_is_open(conv, node.outputs[0]) for conv in convs):
        return None
    weight = constant(convs[0].inputs[1])
    if weight is None:
        return None
    each = per_channel(numbers, weight.ndim, weight.shape[1] * convs[0].attributes.get_int("group", 1))
    if each is None:
        return None
    with np.errstate(all="ignore"):
        factor, shift = factor_and_shift(node, each, first=first)
    usable = np.isfinite(factor).all() and np.isfinite(shift).all() and factor.all()
    return _Step(source, factor, shift, convs) if usable else None


def _is_open(conv: ir.Node, value: ir.Value) -> bool:
    """Whether a convolution reads a value, and has a weight and a bias of its own that may change."""
    if conv.op_type != "Conv" or conv.domain or conv.inputs[0] is not value or value in conv.inputs[1:]:
        return False
    own = [each for each in conv.inputs[1:3] if each is not None]
    return all(is_float32(each) and constant(each) is not None and len(each.uses()) == 1 for each in own)


def _is_unpadded(conv: ir.Node) -> bool:
    auto = conv.attributes.get_string("auto_pad", "NOTSET")
    return auto == "VALID" or (auto == "NOTSET" and not any(conv.attributes.get_ints("pads", ())))


def _pull_factor(graph: ir.Graph, add: ir.Node, step: _Step) -> bool:
    """Bring the factor in front of a shift that stays behind it: the next look folds it."""
    before = step.source.producer()
    if before is None or before.domain or before.op_type not in ("Mul", "Div") or len(step.source.uses()) != 1:
        return False
    if step.source.is_graph_output() or (step.factor != 1.0).any():
        return False
    first = constant(before.inputs[0]) is None
    x, numbers = before.inputs[0 if first else 1], constant(before.inputs[1 if first else 0])
    if x is None or numbers is None or numbers.dtype != np.float32 or numbers.size != 1 or numbers.ndim > 1:
        return False
    with np.errstate(all="ignore"):
        factor, _ = factor_and_shift(before, numbers.reshape(-1).astype(np.float64), first=first)
        shift = (step.shift / factor).astype(np.float32)
    if not np.isfinite(shift).all() or not np.isfinite(factor).all():
        return False
    shape = () if np.ptp(shift) == 0 else (1, -1, *[1] * (constant(step.convs[0].inputs[1]).ndim - 2))  # type: ignore[union-attr]
    stored = add_initializer(graph, fresh_name(graph, f"{add.outputs[0].name}_shift"), _as(shift, shape))
    for conv in step.convs:
        _absorb(graph, conv, _Step(x, np.broadcast_to(factor, step.factor.shape), 0 * step.shift, step.convs))
    stand_in(graph, add, ir.node("Add", [x, stored], name=add.name))
    return True


def _as(numbers: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return numbers[:1].reshape(()) if not shape else numbers.reshape(shape)


def _absorb(graph: ir.Graph, conv: ir.Node, step: _Step) -> None:
    """Scale the weight of a convolution by input channel, and add to its bias what it makes of the shift."""
    weight, name = constant(conv.inputs[1]), str(conv.outputs[0].name)
    assert weight is not None  # as `_is_open` found
    groups = conv.attributes.get_int("group", 1)
    rows = np.repeat(np.arange(groups), len(weight) // groups)
    by_row = (
        each.reshape(groups, -1)[rows].reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
        for each in (step.factor, step.shift)
    )
    factor, shift = by_row
    scaled = add_initializer(graph, fresh_name(graph, f"{name}_scaled_weight"), (weight * factor).astype(np.float32))
    if step.shift.any():
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        moved = (weight * shift).reshape(len(weight), -1).sum(axis=1) + (0.0 if bias is None else bias)
        conv.resize_inputs(3)
        conv.replace_input_with(
            2, add_initializer(graph, fresh_name(graph, f"{name}_moved_bias"), moved.astype(np.float32))
        )
    conv.replace_input_with(1, scaled)
