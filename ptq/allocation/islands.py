"""Float islands of a graph: the nodes that are cheaper in float by stated times of kernels, conversions counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ptq.allocation.divide import NodeTimes, Price, converted_values, divide
from ptq.allocation.stated_times import Shape, stated_times
from ptq.core.errors import UnsupportedModelError
from ptq.core.kernel_costs import KernelCosts
from ptq.passes.placement import Placement

FASTER = "faster in float by the stated times of the target's kernels"

WORTH = 0.05
"""Share of the time from which on it is worth leaving integers out."""

LEAST_US = 50.0
"""Time of a model below which calling it is most of the time."""


MOST_NODES = 1500
"""Nodes beyond which a division is not looked for: it takes seconds, and their square."""


@dataclass(frozen=True)
class Islands:
    """Nodes that could run on integers and should not.

    Attributes:
        floats: Their names -> why; none where too little is gained.
        saved: Share of the time that they save, by stated times.
    """

    floats: Mapping[str, str]
    saved: float = 0.0


def find_islands(
    model: ir.Model,
    place: Callable[[Mapping[str, str]], Placement],
    shapes: Mapping[str, Shape],
    costs: KernelCosts,
) -> Islands:
    """Find the cheapest division of a graph between float and codes, if that leaves most of it on codes or stored so.

    Args:
        model: Prepared float model.
        place: Places integers, with some nodes left in float.
        shapes: Shapes of values.
        costs: Stated times.
    """
    price = Price(costs.conversion.call / 1e3, costs.conversion.value / 1e3)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    times, whole = stated_times(model, shapes, costs), place({})
    if whole.given or len(whole.integer_nodes) > MOST_NODES:  # what came on integers stays there
        return Islands({})
    floats = dict.fromkeys(sorted(divide(model, whole, times, sizes, price)), FASTER)
    if not floats:
        return Islands({})
    try:
        divided = place(floats)
    except UnsupportedModelError:  # all in float, and no weight large enough for codes
        return Islands({})
    before, after = (_total(model, placement, times, sizes, price) for placement in (whole, divided))
    smaller = bool(divided.layers) or 2 * len(divided.stored) >= len(whole.layers)
    worth = smaller and before >= LEAST_US and after <= before * (1 - WORTH)
    return Islands(floats, 1 - after / before) if worth else Islands({})


def _total(model: ir.Model, placement: Placement, times: NodeTimes, sizes: Mapping[str, int], price: Price) -> float:
    """Estimate the microseconds of a model with some of its nodes on codes."""
    both, spent = (times.floats, times.integers), 0.0
    for name in dict.fromkeys([*times.floats, *times.integers]):
        spent += both[name in placement.integer_nodes].get(name, 0.0)
    return spent + sum(price.of(sizes.get(name, 0)) for name in converted_values(model, placement))
