"""Functions of one number that stand behind a value: a swish in the form of Sigmoid and Mul, a Gelu written out."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import onnx_ir as ir

from ptq.core.curve import ELEMENTWISE, Curve, Step
from ptq.passes.linear import constant

DEFAULTS = {"Elu": (("alpha", 1.0),), "HardSigmoid": (("alpha", 0.2), ("beta", 0.5))}
"""Attributes that operators have, and what they are where they are missing."""


def curves_behind(
    groups: Iterable[Sequence[str]],
    values: Mapping[str, ir.Value],
    taken: Container[str],
    relative: Container[ir.Value] = (),
) -> dict[int, Curve]:
    """Return the functions behind values that have a grid of their own, by the number of its group.

    Args:
        groups: Names of the values on each grid.
        values: Name -> value.
        taken: Values whose grid something else decides.
        relative: Values whose relative errors count: where a function makes one, nothing of it is flat.
    """
    alone = {i: members[0] for i, members in enumerate(groups) if len(members) == 1 and members[0] not in taken}
    found = {i: curve_of(values[name], relative) for i, name in alone.items()}
    return {i: curve for i, curve in found.items() if curve is not None}


def curve_of(value: ir.Value, relative: Container[ir.Value] = ()) -> Curve | None:
    """Return what the readers of a value make of it, as far as that is a function of it alone.

    Args:
        value: The value.
        relative: Values whose relative errors count.

    Returns:
        The function; None where the value itself is read by something else, or nothing in it is flat anywhere.
    """
    if value.is_graph_output():
        return None
    places, steps, waiting = {value: 0}, list[Step](), [value]
    while waiting:
        for node in [use.node for use in waiting.pop().uses()]:
            step = None if node.outputs[0] in places else _step(node, places)
            if step is not None:
                steps.append(step)
                places[node.outputs[0]] = len(steps)
                waiting.append(node.outputs[0])
    ends = [place for inner, place in places.items() if _is_read_elsewhere(inner, places)]
    curve = Curve(tuple(steps), tuple(ends))
    near_zero = any(inner in relative for inner in places)
    return curve if ends and 0 not in ends and curve.is_flat and not near_zero else None


def _step(node: ir.Node, places: dict[ir.Value, int]) -> Step | None:
    """Return a node as a step; None unless all that it reads are known places and numbers."""
    if node.domain or node.op_type not in ELEMENTWISE or node.attributes.get_string("approximate", "none") != "none":
        return None
    inputs = list[int | float]()
    for value in node.inputs:
        number = constant(value)
        if value in places:
            inputs.append(places[value])
        elif number is not None and number.size == 1:
            inputs.append(float(number.reshape(())))
        else:
            return None
    settings = tuple(node.attributes.get_float(name, own) for name, own in DEFAULTS.get(node.op_type, ()))
    return Step(node.op_type, tuple(inputs), settings)


def _is_read_elsewhere(value: ir.Value, places: dict[ir.Value, int]) -> bool:
    return value.is_graph_output() or any(use.node.outputs[0] not in places for use in value.uses())
