"""One form of hard sigmoids and hard swishes, which integers can compute: exporters write either in pieces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.graph import fresh_value_name
from ptq.passes.linear import constant
from ptq.passes.rewire import alone, stand_in

SIXTH, HALF = 1 / 6, 0.5
SAME = 1e-5
"""Share by which two factors may differ and still cancel: exporters write 1 / 6 with seven digits."""


@dataclass(frozen=True)
class PlainActivations(ir.passes.InPlacePass):
    """Write hard sigmoids as HardSigmoid, and hard swishes as a value times its HardSigmoid.

    Before: y = HardSwish(x), or Div(Mul(x, Clip(Add(x, 3), 0, 6)), 6)
    After:  y = Mul(x, HardSigmoid(x)), which is what onnxruntime makes of a HardSwish
    Before: y = Div(Clip(Add(x, 3), 0, 6), 6)
    After:  y = HardSigmoid(x)
    Requires: constants of one element.
    Preserves float outputs: yes, within 1e-5.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every one of them, also with Mul by the reciprocal for Div."""
        changed = False
        for node in list(model.graph):
            if node.domain or node.graph is None:
                continue
            if node.op_type == "HardSwish" and node.inputs[0] is not None:
                hard = _hard_sigmoid(model.graph, node, node.inputs[0], SIXTH, HALF)
                stand_in(model.graph, node, hard, ir.node("Mul", [node.inputs[0], hard.outputs[0]], name=node.name))
                changed = True
            elif node.op_type in ("Mul", "Div"):
                changed |= _join_pieces(model.graph, node)
        return ir.passes.PassResult(model, changed)


def _join_pieces(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace a product with a constant that brings what comes before it to 0..1."""
    scaled = _scaled(node)
    source = None if scaled is None else alone(scaled[0])
    if scaled is None or source is None:
        return False
    factor, sides = scaled[1], [scaled[0]]
    if source.op_type == "Mul":
        sides = [value for value in source.inputs if value is not None]
    for place, side in enumerate(sides):
        ramp = _ramp(side)
        if ramp is None or not np.isclose(factor * ramp[2], 1.0, rtol=SAME, atol=0):
            continue
        if source.op_type != "Mul":
            stand_in(graph, node, _hard_sigmoid(graph, node, ramp[0], factor, factor * ramp[1]))
            return True
        hard = _hard_sigmoid(graph, node, ramp[0], factor, factor * ramp[1])
        stand_in(graph, node, hard, ir.node("Mul", [sides[1 - place], hard.outputs[0]], name=node.name))
        return True
    return False


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return the value that a node multiplies by a number, and the number; None for others."""
    first, second = node.inputs
    if node.op_type == "Mul" and _number(first) is not None:
        first, second = second, first
    number = _number(second)
    if first is None or number is None or number == 0.0:
        return None
    return first, (number if node.op_type == "Mul" else 1.0 / number)


def _ramp(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """Return x, b and d of a value that is Clip(x + b, 0, d); None for others."""
    clip = value.producer()
    if clip is None or clip.op_type != "Clip" or clip.domain or len(clip.inputs) != 3:
        return None
    add = None if clip.inputs[0] is None else clip.inputs[0].producer()
    low, high = (_number(end) for end in clip.inputs[1:])
    if add is None or add.op_type != "Add" or add.domain or low != 0.0 or high is None or high <= 0.0:
        return None
    first, second = add.inputs
    x, shift = (first, _number(second)) if _number(second) is not None else (second, _number(first))
    return None if x is None or shift is None else (x, shift, high)


def _number(value: ir.Value | None) -> float | None:
    """Return a float32 constant of one element and at most one axis; None for others."""
    array = constant(value)
    fits = array is not None and array.dtype == np.float32 and array.size == 1 and array.ndim < 2
    return float(array.item()) if fits and array is not None else None


def _hard_sigmoid(graph: ir.Graph, node: ir.Node, x: ir.Value, alpha: float, beta: float) -> ir.Node:
    made = ir.node("HardSigmoid", [x], {"alpha": float(np.float32(alpha)), "beta": float(np.float32(beta))})
    made.outputs[0].name = fresh_value_name(graph, f"{node.outputs[0].name}_gate")
    return made
