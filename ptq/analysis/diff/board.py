"""Switchboard of a quantized graph: all places that can be switched between codes and float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True)
class Switch:
    """A place where values are rounded.

    Attributes:
        name: The value, as the float model calls it.
        key: Input of the switchboard: true rounds.
        source: Value before rounding.
        rounded: Value after it.
        limits: Smallest and largest value that the grid holds; None for an embedding table.
    """

    name: str
    key: str
    source: str
    rounded: str
    limits: tuple[float, float] | None


@dataclass(frozen=True)
class Parameter:
    """A constant that the quantized model decodes, or a bias that it changed.

    Attributes:
        node: Name of the node that reads it.
        index: At which input.
        key: Input of the switchboard.
        value: What the quantized model computes with.
        num_scales: How many scales it has; None if that is unknown.
        saturated: Codes at the limits of 32 bits.
    """

    node: str
    index: int
    key: str
    value: NDArray[Any]
    num_scales: int | None = None
    saturated: int = 0


@dataclass(frozen=True)
class Site:
    """A group switched together: a layer with its weights and its result's grid, or a Concat with its parts' grids.

    Attributes:
        name: Name of the layer, as `--layer` and `--exclude` take it.
        op_type: Its operator.
        value: Its result in the switchboard.
        parts: What goes in, for a Concat.
        switches: Its grids.
        parameters: Its constants.
        readers: Layers that read its result.
    """

    name: str
    op_type: str
    value: str
    parts: tuple[str, ...]
    switches: tuple[Switch, ...]
    parameters: tuple[Parameter, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Switchboard:
    """A quantized graph with switches.

    Attributes:
        model: Inputs are those of the quantized model, and the keys of all switches and parameters.
        nodes: Node -> its name in the float model's words.
        sites: Everything that can be switched, in dataflow order.
    """

    model: ir.Model
    nodes: Mapping[ir.Node, str]
    sites: tuple[Site, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """Names of all values that are compared: results of sites, parts of Concats, both sides of grids."""
        results = [name for site in self.sites for name in (site.value, *site.parts)]
        inner = [name for site in self.sites for each in site.switches for name in (each.source, each.rounded)]
        return tuple(dict.fromkeys(results + inner))

    def node(self, name: str) -> ir.Node:
        """Return the node that the float model knows by that name."""
        return next(node for node, called in self.nodes.items() if called == name)
