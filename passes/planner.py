"""The walk that places integers: which nodes run on codes, and which values share one grid.

Three kinds of nodes run on integers: linear layers; arithmetic with an integer kernel (Add, Concat, pooling ...) when
all its inputs are codes already; and nodes that only move data, whose output shares the grid of their input. A Relu
(or Clip around 0) after a linear layer or Add disappears into the ends of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ptq.core.affine import QuantParams
from ptq.core.layer import LinearLayer
from ptq.core.ramp import Ramp
from ptq.passes._qdq import quantizer
from ptq.passes.curves import curves_behind
from ptq.passes.gates import gated, is_flat_below, ramp_of
from ptq.passes.given import is_on_codes
from ptq.passes.linear import constant, describe_linear, is_float32, name_of
from ptq.passes.placement import Excludes, Placement
from ptq.passes.remaining import remaining_floats
from ptq.passes.sites import WeightSite
from ptq.passes.spreading import (
    clipping_follower,
    feeds_integers,
    is_product,
    lacks_kernel,
    moves_only,
    two_activations,
)  # fmt: skip
from ptq.passes.stored import INSIDE, RECURRENT, StoredWeight, find_stored, float_kernels, inner_layers
from ptq.passes.tables import find_tables
from ptq.target import ARITHMETIC_OPS, INTEGER_OPS, LINEAR_OPS, MOVING, RESHAPING

NO_KERNEL = "onnxruntime has no integer kernel for it"
FLOAT_OPS = (LINEAR_OPS - INTEGER_OPS) | RECURRENT
"""Operators with weights that have no integer kernel for inputs on grids."""

NO_DYNAMIC_KERNEL = "onnxruntime's integer convolution with ranges taken at run time is slower than the float one"

UNREAD = {
    "Concat": "no integer node reads it, and its inputs keep finer grids of their own",
    "GlobalAveragePool": "no integer node reads it: means of codes are finer than codes",
}
"""Operators that stay float where no integer node reads their result -> why."""


def near_a_pole(reader: str) -> str:
    """Return the reason why a value keeps float in front of an operator that is infinite or steep at 0."""
    return f"its relative errors count: a code of 0 would become infinite, or far off, in {reader} behind it"


@dataclass
class Planner:
    """The state of one walk. `needed` values get a grid; `produced` ones come out of integer nodes."""

    asked: Excludes
    floats: Mapping[str, str]
    native: bool = False
    relative: Mapping[ir.Value, str] = field(default_factory=dict)
    given: Mapping[str, QuantParams] = field(default_factory=dict)
    layers: list[LinearLayer] = field(default_factory=list)
    integer: set[str] = field(default_factory=set)
    needed: dict[str, ir.Value] = field(default_factory=dict)
    produced: set[str] = field(default_factory=set)
    absorbed: set[str] = field(default_factory=set)
    left_float: dict[str, str] = field(default_factory=dict)
    parent: dict[str, str] = field(default_factory=dict)
    ramps: dict[str, Ramp] = field(default_factory=dict)
    gates: dict[str, str] = field(default_factory=dict)

    def excluded(self, node: ir.Node) -> str | None:
        """Return why a node is to stay on a float kernel, or None."""
        return self.asked(node) or self.floats.get(name_of(node))

    def stored(self, model: ir.Model) -> tuple[StoredWeight, ...]:
        """Find weights of float kernels that lie on codes: not of those whose relative errors count."""
        return find_stored(model, self.asked, roundable(self.left_float, self.relative))

    def visit_given(self, node: ir.Node) -> None:
        """Take over what came on integers, and give a Conv the grid of its output that it came without."""
        value = node.outputs[0] if node.outputs else None
        if value is not None and node.op_type == "DequantizeLinear" and str(value.name) in self.given:
            self._need(value)
            self.produced.add(str(value.name))
        elif self.given and not node.domain and is_on_codes(node, self.given):
            self.integer.add(name_of(node))
            if node.op_type == "Conv":
                self._produce(node)

    def visit_linear(self, node: ir.Node) -> None:
        """Seed the walk: a linear layer needs its input in codes, a Conv its output too."""
        name = name_of(node)
        if lacks_kernel(node, FLOAT_OPS):
            self.left_float[name] = self.excluded(node) or self.floats.get(name) or NO_KERNEL
        if node.domain or name in self.integer or node.op_type not in INTEGER_OPS:
            return
        layer = two_activations(node) if is_product(node) else describe_linear(node, native=self.native)
        reader = self.relative.get(node.outputs[0])
        reason = self.excluded(node) or (layer if isinstance(layer, str) else reader and near_a_pole(reader))
        if reason:
            self.left_float[name] = reason
            return
        self.integer.add(name)
        if isinstance(layer, LinearLayer):
            self.layers.append(layer)
        for value in node.inputs[: 2 if layer is None else 1]:
            self._need_upwards(value)
        if node.op_type == "Conv":
            self._produce(node)

    def visit_other(self, node: ir.Node) -> None:
        """Spread integers forward through arithmetic and data movement. Called in dataflow order."""
        name = name_of(node)
        if node.domain or name in self.absorbed or name in self.integer or not is_float32(node.outputs[0]):
            return
        if node.op_type in MOVING and moves_only(node) and self._moves_codes(node):
            if not self.excluded(node):
                self.integer.add(name)
                self._produce(node, absorb=False)
                self._join(node.outputs[0], node.inputs[0])
        elif node.op_type in ARITHMETIC_OPS and self._reads_codes(node):
            self._visit_arithmetic(node)
        elif ramp_of(node) is not None:
            self._visit_gate(node)

    def finish(self, nodes: list[ir.Node], model: ir.Model) -> Placement:
        """Number the groups in dataflow order and return the placement."""
        order = [str(value.name) for value in model.graph.inputs] + [
            str(v.name) for node in nodes for v in node.outputs
        ]
        groups: dict[str, list[str]] = {}
        for name in order:
            if name in self.needed:
                groups.setdefault(self._root(name), []).append(name)
        moving = MOVING | {"Concat"}
        derived = {name_of(node) for node in nodes if node.op_type in moving and name_of(node) in self.integer}
        index = {root: i for i, root in enumerate(groups)}
        ramps = {index[self._root(name)]: ramp for name, ramp in self.ramps.items()}
        apart = [
            index[self._root(name)]
            for name, ramp in self.ramps.items()
            if len(groups[self._root(name)]) == 1 and is_flat_below(self.needed[name], ramp)
        ]
        sources = {
            name: index[root]
            for root, members in groups.items()
            for name in members
            if name not in derived or not any(other not in derived for other in members)
        }
        tables, stored = find_tables(model, self.excluded, self.layers), self.stored(model)
        return Placement(
            tuple(self.layers),
            frozenset(self.integer | self.absorbed),
            tuple(tuple(members) for members in groups.values()),
            sources,
            frozenset(self.produced),
            left_float_of(model, self.excluded, (*self.layers, *tables, *stored), self.left_float),
            self._read_as(nodes, groups, lambda node, position: node.op_type == "MatMul" and position == 1),
            tables,
            self._read_as(nodes, groups, lambda node, _: node.op_type == "MatMul"),
            stored,
            ramps,
            frozenset(apart),
            {index[self._root(name)]: index[self._root(source)] for name, source in self.gates.items()},
            float_kernels(model, self.left_float),
            self.given,
            curves_behind(groups.values(), self.needed, {*self.ramps, *self.given}, self.relative),
        )

    def _read_as(
        self, nodes: list[ir.Node], groups: Mapping[str, list[str]], fits: Callable[[ir.Node, int], bool]
    ) -> frozenset[int]:
        """Return the groups whose readers among the integer nodes all fit, by node and position; moving ones aside."""
        fitting, other = set[str](), set[str]()
        for node in nodes:
            if name_of(node) in self.integer and node.op_type not in MOVING:
                for position, value in enumerate(node.inputs):
                    if value is not None and str(value.name) in self.needed:
                        (fitting if fits(node, position) else other).add(self._root(str(value.name)))
        return frozenset(i for i, root in enumerate(groups) if root in fitting - other)

    def _visit_arithmetic(self, node: ir.Node) -> None:
        name = name_of(node)
        if reason := self.excluded(node):
            self.left_float[name] = reason
            return
        if reader := self.relative.get(node.outputs[0]):
            self.left_float[name] = near_a_pole(reader)
            return
        if node.op_type in UNREAD and not feeds_integers(node.outputs[0], self.needed):
            self.left_float[name] = UNREAD[node.op_type]
            return
        self.integer.add(name)
        self._produce(node)
        if node.op_type == "Concat":
            # Rounding at the common step happens anyway; parts that nobody else reads may as well be born on that grid.
            for value in node.inputs:
                if value is not None and len(value.uses()) == 1 and self._root(str(value.name)) not in self.given:
                    self._join(node.outputs[0], value)

    def _visit_gate(self, node: ir.Node) -> None:
        """Let a hard sigmoid clip the codes of what it reads, if all that it is multiplied by lies on codes as well."""
        source, ramp, factors = node.inputs[0], ramp_of(node), gated(node)
        if ramp is None or source is None or not factors or not self._has_codes(source) or self.excluded(node):
            return
        products = [use.node.outputs[0] for use in node.outputs[0].uses()]
        if not all(self._has_codes(factor) for factor in factors) or not any(
            feeds_integers(product, self.needed) for product in products
        ):
            return
        root = self._root(str(source.name))
        taken = [other for name, other in self.ramps.items() if self._root(name) == root]
        if root not in self.given and all(other == ramp for other in taken):
            self.integer.add(name_of(node))
            self._produce(node, absorb=False)
            self.ramps[str(source.name)] = ramp
            self.gates[name_of(node)] = str(source.name)

    def _need_upwards(self, value: ir.Value | None) -> None:
        """Ask for codes; before pure reshaping rather than after it, so that the reshaping moves bytes."""
        if value is None or constant(value) is not None:
            return
        self._need(value)
        producer = value.producer()
        if producer is not None and producer.op_type in RESHAPING and len(value.uses()) == 1:
            source = producer.inputs[0]
            if is_float32(source) and not self.excluded(producer):
                self._need_upwards(source)

    def _produce(self, node: ir.Node, *, absorb: bool = True) -> None:
        """Let the node write codes, and swallow an activation behind it that only clips at 0."""
        if self.given and quantizer(node) is not None:
            return
        value = node.outputs[0]
        follower = clipping_follower(value) if absorb and node.op_type not in ("Concat", "Sigmoid") else None
        if follower is not None and not self.excluded(follower):
            self.absorbed.add(name_of(follower))
            value = follower.outputs[0]
        self._need(value)
        self.produced.add(str(value.name))

    def _need(self, value: ir.Value) -> None:
        self.needed.setdefault(str(value.name), value)

    def _reads_codes(self, node: ir.Node) -> bool:
        """Whether an arithmetic node reads codes, or codes and a number, which is a code of a grid of its own."""
        changing = [value for value in node.inputs if constant(value) is None]
        if not changing or not all(self._has_codes(value) for value in changing):
            return False
        return len(changing) == len(node.inputs) or (
            is_number_on_codes(node) and feeds_integers(node.outputs[0], self.needed)
        )

    def _has_codes(self, value: ir.Value | None) -> bool:
        return (
            value is not None
            and str(value.name) in self.needed
            and (str(value.name) in self.produced or value.is_graph_input())
        )

    def _moves_codes(self, node: ir.Node) -> bool:
        """Whether codes go in, or both sides asked for codes, as in front of a product."""
        source, result = node.inputs[0], node.outputs[0]
        wanted = source is not None and {str(source.name), str(result.name)} <= self.needed.keys()
        return self._has_codes(source) or (wanted and node.op_type in RESHAPING)

    def _join(self, value: ir.Value, other: ir.Value | None) -> None:
        if other is not None:
            self.parent[self._root(str(value.name))] = self._root(str(other.name))

    def _root(self, name: str) -> str:
        while name in self.parent and self.parent[name] != name:
            name = self.parent[name]
        return name


def roundable(floats: Iterable[str], relative: Mapping[ir.Value, str]) -> set[str]:
    """Return the layers on float kernels whose weights may be rounded."""
    return set(floats) - {str(value.name) for value in relative}


def left_float_of(
    model: ir.Model, excluded: Excludes, sites: Iterable[WeightSite], known: Mapping[str, str]
) -> dict[str, str]:
    """Return why nodes stay float: what is known, kernels inside bodies, and whatever else reads float weights."""
    coded = {site.weight if isinstance(site, LinearLayer) else site.name for site in sites}
    inside = {name_of(node): excluded(node) or INSIDE for node in inner_layers(model)}
    return remaining_floats(model, coded, excluded) | dict(known) | inside


def is_number_on_codes(node: ir.Node) -> bool:
    """Whether a node adds a number to codes, or multiplies them by one; a number per channel would lose digits."""
    numbers = [array for value in node.inputs if (array := constant(value)) is not None]
    fits = [array.dtype == np.float32 and array.size == 1 and array.ndim < 2 and bool(array.all()) for array in numbers]
    return node.op_type in ("Add", "Mul") and fits == [True] and bool(np.isfinite(numbers[0]).all())
