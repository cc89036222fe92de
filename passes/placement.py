"""Placement of integers as a value: which nodes and weights lie on codes, and which values share one grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from ptq.core.affine import QuantParams
from ptq.core.curve import Curve
from ptq.core.layer import LinearLayer
from ptq.core.ramp import Ramp
from ptq.passes.sites import WeightSite
from ptq.passes.stored import StoredWeight
from ptq.passes.tables import Table

Excludes = Callable[[ir.Node], str | None]
"""Why the user wants a node left in float, or None."""


@dataclass(frozen=True)
class Placement:
    """A decision about which nodes and weights of a graph lie on codes, before any statistics.

    Attributes:
        layers: Linear layers with constant weights, in dataflow order.
        integer_nodes: Names of all nodes that read and write codes.
        groups: Values that share one grid, each group in dataflow order.
        sources: Values whose data decide the grid of their group: value name -> group index.
        produced: Values whose producer writes codes, so that every reader has to go through them.
        left_float: Node name -> why it stays float, for linear layers, arithmetic that could be integer, and all others
            that read float weights.
        right_operands: Groups that are only the right side of a product of two activations: kernels want them signed.
        tables: Embedding tables.
        only_products: Groups whose values no integer node but products reads.
        stored: Weights that float kernels read and that lie on codes nevertheless.
        ramps: Group -> the hard sigmoid that reads it, whose foot has to lie on a code.
        cut: Groups among them that need not reach below the foot.
        gates: Group of the result of a hard sigmoid -> group that it reads, whose codes it clips.
        float_kernels: Layers that stay on float kernels, the user's exclusions aside: their weights may lie on codes.
        given: Values that the model came with pairs for, before and behind them -> their grids; the pairs stay.
        curves: Group of one value -> the function that is all that its readers make of it.
    """

    layers: tuple[LinearLayer, ...]
    integer_nodes: frozenset[str]
    groups: tuple[tuple[str, ...], ...]
    sources: Mapping[str, int]
    produced: frozenset[str]
    left_float: Mapping[str, str]
    right_operands: frozenset[int]
    tables: tuple[Table, ...] = ()
    only_products: frozenset[int] = frozenset()
    stored: tuple[StoredWeight, ...] = ()
    ramps: Mapping[int, Ramp] = field(default_factory=dict)
    cut: frozenset[int] = frozenset()
    gates: Mapping[int, int] = field(default_factory=dict)
    float_kernels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    given: Mapping[str, QuantParams] = field(default_factory=dict)
    curves: Mapping[int, Curve] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, str]:
        """Nodes that stay float -> why, and whether their weights lie on codes."""
        stored = {weight.name for weight in self.stored}
        on_codes = {name for name, weights in self.float_kernels.items() if stored.intersection(weights)}
        return {
            name: f"{reason}; float kernel, weight on codes" if name in on_codes else reason
            for name, reason in self.left_float.items()
        }

    def with_axes(self, axes: Mapping[str, tuple[int, ...]]) -> Placement:
        """Return the placement with other axes for scales of stored weights; where there are none they stay float."""
        stored = [replace(weight, axes=axes.get(weight.name, weight.axes)) for weight in self.stored]
        return replace(self, stored=tuple(weight for weight in stored if weight.axes))

    @property
    def tied(self) -> dict[str, str]:
        """Products whose codes are those of a table -> name of the table."""
        return {table.product: table.name for table in self.tables if table.product}

    @property
    def sites(self) -> tuple[WeightSite, ...]:
        """Weights that lie on codes: of layers, of tables, and stored ones."""
        return (*self.layers, *self.tables, *self.stored)


NOWHERE = Placement((), frozenset(), (), {}, frozenset(), {}, frozenset())
"""Nothing on codes, and nothing that could be."""
