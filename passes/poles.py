"""Readers that are infinite or infinitely steep at 0: what they read counts by its relative error, which no grid keeps.

Found from the readers upwards: Log, and powers below 1 (Sqrt, Reciprocal, Div by a value, Pow), through what keeps
relative errors as they are: factors, shifts and limits next to 0, powers, sums of what is positive, moving of data, and
layers whose weight is nowhere negative, as filter banks are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ptq.passes.linear import constant
from ptq.target import INTEGER_OPS, MOVING

GUARD = 1e-2
"""Shift or limit, in the unit of a value, from which on what is behind it does not come near its pole."""

SUMS = frozenset({"ReduceSum", "ReduceMean", "ReduceMax"})
KEEPING = MOVING | {"Abs", "Cast", "Concat", "Relu", "Identity"}


@dataclass(frozen=True)
class _Pole:
    """Pole that a value meets in the end: of its logarithm, or of a power of it.

    Attributes:
        reader: Operator that computes it.
        exponent: Power of the value; 0 for a logarithm.
        guard: Shift or lower limit on the way, in the unit of the value.
        is_last: Whether to look no further up: the pole is at a number, not at 0.
    """

    reader: str
    exponent: float
    guard: float = 0.0
    is_last: bool = False

    @property
    def is_logarithm(self) -> bool:
        """Whether it is a logarithm, whatever powers are in front of it."""
        return self.exponent == 0.0

    @property
    def is_near(self) -> bool:
        """Whether the slope at 0 is infinite, and nothing keeps the value away; a square before a Sqrt does."""
        return self.exponent < 1.0 and self.guard < GUARD

    def of_power(self, power: float) -> _Pole:
        """Return the pole of x, where this is the one of x ** power."""
        guard = self.guard ** (1 / power) if power > 0 else 0.0
        return replace(self, exponent=self.exponent * power, guard=guard)

    def of_factor(self, factor: float) -> _Pole:
        """Return the pole of x, where this is the one of factor * x."""
        return replace(self, guard=self.guard / factor if factor > 0 else 0.0)

    def with_guard(self, guard: float) -> _Pole:
        """Return the pole of x, where this is the one of x with a shift or a limit."""
        return replace(self, guard=max(self.guard, guard))


Reached = list[tuple[ir.Value | None, _Pole]]


def relative_values(graph: ir.Graph) -> Mapping[ir.Value, str]:
    """Find the values whose relative errors count.

    Args:
        graph: Prepared.

    Returns:
        Each of them -> operator that is infinite or infinitely steep where it is 0.
    """
    found, stack = dict[ir.Value, _Pole](), Reached()
    for node in graph:
        if not node.domain:
            stack += _started(node)
    while stack:
        value, pole = stack.pop()
        if value is None or constant(value) is not None or pole.exponent >= 1.0:
            continue
        before = found.get(value)
        if before is not None and (before.is_logarithm, -before.guard) >= (pole.is_logarithm, -pole.guard):
            continue
        found[value] = pole
        maker = value.producer()
        if maker is not None and not maker.domain and not pole.is_last:
            stack += _upwards(maker, pole)
    return {value: pole.reader for value, pole in found.items() if pole.is_near}


def _started(node: ir.Node) -> Reached:
    """Return what a node reads that has to stay away from 0."""
    if node.op_type in ("Log", "Reciprocal", "Sqrt"):
        exponent = {"Log": 0.0, "Reciprocal": -1.0, "Sqrt": 0.5}[node.op_type]
        return [(node.inputs[0], _Pole(node.op_type, exponent))]
    if node.op_type == "Div":
        return [(node.inputs[1], _Pole("Div", -1.0))]
    power = _least(node.inputs[1]) if node.op_type == "Pow" else None
    return [] if power is None or power == 0.0 else [(node.inputs[0], _Pole("Pow", power))]


def _upwards(node: ir.Node, pole: _Pole) -> Reached:
    """Return what a node reads whose relative errors it passes on."""
    op, first = node.op_type, node.inputs[0] if node.inputs else None
    if op in KEEPING:
        return [(value, pole) for value in (node.inputs if op == "Concat" else [first])]
    if op in SUMS:  # those of powers are norms, whose many parts are not all near 0
        return [(first, pole)] if pole.is_logarithm else []
    if op in INTEGER_OPS:
        weights = [array for value in node.inputs[:2] if (array := constant(value)) is not None]
        positive = len(weights) == 1 and bool((weights[0] >= 0).all())
        return [(value, pole) for value in node.inputs[:2]] if positive and pole.is_logarithm else []
    if op == "Sqrt":
        return [(first, pole.of_power(0.5))]
    if op == "Pow":
        power = _least(node.inputs[1])
        return [] if power is None or power == 0.0 else [(first, pole.of_power(power))]
    if op in ("Mul", "Div"):
        return _factors(node, pole)
    return _shifted(node, pole)


def _factors(node: ir.Node, pole: _Pole) -> Reached:
    """Return the factors of a product or the parts of a quotient."""
    first, second = node.inputs
    if node.op_type == "Mul" and first is second:
        return [(first, pole.of_power(2.0))]
    if constant(first) is not None or constant(second) is not None:
        numbers = constant(second if constant(first) is None else first)
        largest = 0.0 if numbers is None or not numbers.size else float(np.abs(numbers).max())
        if node.op_type == "Div":
            largest = 1.0 / largest if largest and constant(second) is not None else 0.0
        return [(value, pole.of_factor(largest)) for value in node.inputs]
    apart = replace(pole, guard=0.0)
    return [(first, apart), (second, apart if node.op_type == "Mul" else apart.of_power(-1.0))]


def _shifted(node: ir.Node, pole: _Pole) -> Reached:
    """Return what is shifted or limited."""
    if node.op_type in ("Add", "Clip"):
        ends = node.inputs[1:2] if node.op_type == "Clip" else node.inputs
        guard = max((number for value in ends if (number := _least(value)) is not None), default=0.0)
        return [(value, pole.with_guard(guard)) for value in node.inputs[: 1 if node.op_type == "Clip" else None]]
    if node.op_type == "Sub" and constant(node.inputs[0]) is not None:
        return [(node.inputs[1], replace(pole, is_last=True))]
    return []


def _least(value: ir.Value | None) -> float | None:
    """Return the smallest number of a constant; None for other values."""
    numbers = constant(value)
    return None if numbers is None or not numbers.size else float(numbers.min())
