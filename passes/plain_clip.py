"""One Clip for what limits values to an interval: an integer layer before it swallows a Clip, but no Max or Min."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import constant
from ptq.passes.rewire import alone, stand_in

Ends = tuple[float, float]


@dataclass(frozen=True)
class PlainClip(ir.passes.InPlacePass):
    """Write Max and Min with a constant number as Clip, and Clips in a row as one.

    Before: y = Min(Max(x, 0), 6), or Min(Relu(x), 6)
    After:  y = Clip(x, 0, 6)
    Requires: float32 constants of one element.
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite them in the order of the graph: of several in a row, the last one takes the others in."""
        changed = [_rewrite(model.graph, node) for node in list(model.graph) if not node.domain]
        return ir.passes.PassResult(model, any(changed))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type not in ("Max", "Min", "Clip"):
        return False
    found = _limited(node)
    if found is None:
        return False
    source, ends = found
    before = alone(source)
    inner = None if before is None or before.op_type not in ("Relu", "Clip") else _limited(before)
    if inner is not None:
        source, (low, high) = inner
        ends = _within(low, ends), _within(high, ends)
    elif node.op_type == "Clip":
        return False
    stand_in(graph, node, ir.node("Clip", [source, *_ends(graph, node, ends)], name=node.name))
    return True


def _limited(node: ir.Node) -> tuple[ir.Value, Ends] | None:
    """Return the value that a node limits, and the ends of its interval; None for what is no such node."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Relu" and first is not None:
        return first, (0.0, np.inf)
    if node.op_type == "Clip" and first is not None:
        ends = [*node.inputs[1:3], None, None][:2]
        numbers = [_number(value) for value in ends]
        if any(value is not None and number is None for value, number in zip(ends, numbers, strict=True)):
            return None
        low, high = numbers
        ordered = (-np.inf if low is None else low), (np.inf if high is None else high)
        return (first, ordered) if ordered[0] <= ordered[1] else None
    if node.op_type not in ("Max", "Min") or len(node.inputs) != 2:
        return None
    numbers = [_number(value) for value in node.inputs]
    source = node.inputs[1 if numbers[0] is not None else 0]
    number = next((number for number in numbers if number is not None), None)
    if source is None or number is None or constant(source) is not None:
        return None
    return source, ((number, np.inf) if node.op_type == "Max" else (-np.inf, number))


def _number(value: ir.Value | None) -> float | None:
    """Return a float32 constant of one element that has no more axes than any value; None for others."""
    array = constant(value)
    fits = array is not None and array.dtype == np.float32 and array.size == 1 and array.ndim < 2
    return float(array.item()) if fits and array is not None and not np.isnan(array).any() else None


def _within(number: float, ends: Ends) -> float:
    return min(max(number, ends[0]), ends[1])


def _ends(graph: ir.Graph, node: ir.Node, ends: Ends) -> list[ir.Value | None]:
    """Write the ends that are finite as constants."""
    name, made = str(node.outputs[0].name), list[ir.Value | None]()
    for key, end in zip(("low", "high"), ends, strict=True):
        finite = np.isfinite(end)
        array = np.asarray(end, np.float32)
        made.append(add_initializer(graph, fresh_name(graph, f"{name}_{key}"), array) if finite else None)
    return made[:1] if made[1] is None else made
