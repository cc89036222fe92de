"""The division of a graph into nodes on integers and nodes in float that takes the least time.

Between a float node and an integer one lies a conversion, so the cheapest division of a graph is a minimum cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ptq.allocation.mincut import FORBIDDEN, Division
from ptq.passes.linear import name_of
from ptq.passes.placement import Placement
from ptq.target import INTEGER_OPS


@dataclass(frozen=True)
class Price:
    """Price of a conversion between float and codes.

    Attributes:
        fixed: Microseconds, however little is converted.
        rate: Microseconds for every number that is converted.
    """

    fixed: float
    rate: float

    def of(self, size: int) -> float:
        """Return the microseconds for so many numbers."""
        return self.fixed + self.rate * size

    def times(self, factor: float) -> Price:
        """Return a price so many times as high."""
        return Price(self.fixed * factor, self.rate * factor)


@dataclass(frozen=True)
class NodeTimes:
    """Times of nodes by name, in float and on codes.

    Attributes:
        floats: Node -> microseconds in float.
        integers: Node -> microseconds on codes.
    """

    floats: Mapping[str, float]
    integers: Mapping[str, float]


def divide(
    model: ir.Model, placement: Placement, times: NodeTimes, sizes: Mapping[str, int], price: Price
) -> frozenset[str]:
    """Choose the nodes that should run in float though they could run on integers.

    Args:
        model: Prepared float model.
        placement: Everything that can be integers.
        times: Times of its nodes.
        sizes: Value name -> how many numbers it has.
        price: Price of a conversion.

    Returns:
        Names of nodes.
    """
    problem, able = Division(), placement.integer_nodes
    for node in model.graph:
        name = name_of(node)
        if name in able:
            problem.cost(name, here=times.integers.get(name, 0.0), there=times.floats.get(name, 0.0))
            for leader in _leaders(node, placement):
                problem.apart(name, leader, FORBIDDEN)
                if _is_absorbed(node, placement):
                    problem.apart(leader, name, FORBIDDEN)
    with_grid = _with_grid(placement)
    for value, readers in (each for each in values_and_readers(model) if str(each[0].name) in with_grid):
        _add_conversions(problem, value, readers, placement, price.of(sizes.get(str(value.name), 0)))
    return able - {name for name in problem.solve() if isinstance(name, str)}


def converted_values(model: ir.Model, placement: Placement) -> list[str]:
    """Find the values that are converted between float and codes."""
    names, with_grid = [], _with_grid(placement)
    for value, readers in values_and_readers(model):
        name, able = str(value.name), sum(reader in placement.integer_nodes for reader in readers)
        if name in placement.produced and able < len(readers):
            names.append(name)
        if name in with_grid and name not in placement.produced and able:
            names.append(name)
    return names


def values_and_readers(model: ir.Model) -> Iterator[tuple[ir.Value, list[str | None]]]:
    """Yield every value with the names of its readers, None for the caller."""
    for value in (*model.graph.inputs, *(each for node in model.graph for each in node.outputs)):
        readers: list[str | None] = [name_of(use.node) for use in value.uses()]
        yield value, readers + ([None] if value.is_graph_output() else [])


def _add_conversions(
    problem: Division, value: ir.Value, readers: list[str | None], placement: Placement, cost: float
) -> None:
    """Add a price for converting a value, once for all its readers of the other kind; None among them stays float."""
    able, producer = [name for name in readers if name in placement.integer_nodes], value.producer()
    maker = name_of(producer) if producer is not None and str(value.name) in placement.produced else None
    to_codes, to_float = ("codes", value.name), ("float", value.name)
    for name in able:
        problem.apart(name, to_codes, FORBIDDEN)
    if maker is None or maker not in placement.integer_nodes:
        problem.cost(to_codes, here=cost, there=0.0)
        return
    problem.apart(to_codes, maker, cost)
    problem.apart(maker, to_float, cost)
    for name in able:
        problem.apart(to_float, name, FORBIDDEN)
    if len(able) < len(readers):
        problem.cost(to_float, here=FORBIDDEN, there=0.0)


def _leaders(node: ir.Node, placement: Placement) -> list[str]:
    """Return the nodes without whose codes a node that is no linear layer cannot run on integers."""
    if not node.domain and node.op_type in INTEGER_OPS:
        return []
    producers = [value.producer() for value in node.inputs if value is not None]
    names = [name_of(producer) for producer in producers if producer is not None]
    return [name for name in names if name in placement.integer_nodes]


def _is_absorbed(node: ir.Node, placement: Placement) -> bool:
    """Whether a node disappears into the zero point of the node before it."""
    source = node.inputs[0] if node.inputs else None
    return node.op_type in ("Relu", "Clip") and source is not None and str(source.name) not in _with_grid(placement)


def _with_grid(placement: Placement) -> set[str]:
    """Return the values that are codes where everything is."""
    return {name for group in placement.groups for name in group}
