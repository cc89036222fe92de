"""A quantized graph with a switch at every place where it rounds, so that one session runs any mixture of it and float.

Every Q/DQ pair becomes Where(switch, DQ(Q(x)), x), and every weight that is decoded from codes becomes an input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.analysis.diff.board import Parameter, Site, Switch, Switchboard
from ptq.analysis.diff.codes import (
    MOVES,
    at_limits,
    decoding,
    limits_of,
    move_floats,
    same_grid,
)
from ptq.analysis.diff.names import FloatNodes, consumers, origin, pair_of
from ptq.passes.decoding import arrays_of, constants, picked_rows
from ptq.passes.graph import add_initializer
from ptq.passes.linear import constant, name_of
from ptq.target import LINEAR_OPS

FOLLOWERS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Max", "HardSwish"})
"""Operators that belong to the layer in front of them."""


def switchboard(quantized: ir.Model, floats: FloatNodes, custom_ops: Sequence[str | Path] = ()) -> Switchboard:
    """Build the switchboard of a quantized model.

    Args:
        quantized: Any model with QuantizeLinear and DequantizeLinear. Not modified.
        floats: The float model's nodes, which tell what activations the quantizer has made part of a grid.
        custom_ops: Libraries the model needs.

    Returns:
        The graph; no site if the model has nothing to switch.
    """
    model = quantized.clone()
    move_floats(model.graph)
    building = _Building(model, floats)
    building.name_nodes()
    building.parameters(custom_ops)
    groups = building.grid_groups()
    building.tables()
    for quantizer in building.quantizers:
        building.pair(quantizer)
    return Switchboard(model, building.names, tuple(building.sites(groups)))


Facts = tuple[str, tuple[float, float] | None]
"""Name of a switched value, and the limits of its grid."""


@dataclass
class _Building:
    model: ir.Model
    floats: FloatNodes
    names: dict[ir.Node, str] = field(default_factory=dict)
    owners: dict[ir.Node, ir.Node] = field(default_factory=dict)
    quantizers: list[ir.Node] = field(default_factory=list)
    switches: dict[ir.Node, list[Switch]] = field(default_factory=dict)
    found: dict[ir.Node, list[Parameter]] = field(default_factory=dict)
    mixed: dict[ir.Value, str] = field(default_factory=dict)
    readers: dict[ir.Node, list[ir.Node]] = field(default_factory=dict)

    def name_nodes(self) -> None:
        """Note names, owners and neighbors, while the graph still is as it came."""
        fixed = constants(self.model.graph)
        nodes = [n for n in self.model.graph if n.outputs and n.outputs[0] not in fixed]
        self.quantizers = [node for node in nodes if pair_of(node)]
        hidden = {"QuantizeLinear", "DequantizeLinear"}
        for node in nodes:
            if node.op_type not in hidden or node.domain:
                self.names[node] = _called(node)
        for quantizer in self.quantizers:
            self.readers[quantizer] = consumers(_source(quantizer))
        for node in self.names:
            self.owners[node] = self._owner(node, fixed)
            self.readers[node] = [reader for value in node.outputs for reader in consumers(value)]

    def _owner(self, node: ir.Node, fixed: Mapping[ir.Value, bool]) -> ir.Node:
        """Return the layer that a node belongs to."""
        while True:
            moving = [value for value in node.inputs if value is not None and value not in fixed]
            adds = node.op_type in ("Add", "Sum") and len(node.inputs) == 2
            source = origin(moving[0]) if len(moving) == 1 and (node.op_type in FOLLOWERS or adds) else None
            producer = None if source is None else source.producer()
            if producer is None or source is None or len(consumers(source)) != 1 or producer not in self.names:
                return node
            if adds and producer.op_type != "MatMul":
                return node
            node = producer

    def parameters(self, custom_ops: Sequence[str | Path]) -> None:
        """Turn constants that come out of codes into inputs, and the biases of their layers too."""
        fixed = constants(self.model.graph)
        uses = [
            (node, index, value)
            for node in self.names
            for index, value in enumerate(node.inputs)
            if value is not None and fixed.get(value) and value.producer() is not None
        ]
        arrays = arrays_of(self.model, {value for _, _, value in uses}, custom_ops)
        for node, index, value in uses:
            array = arrays[value]
            if array.dtype == np.float32 and array.size > 1:
                scales, codes = decoding(value)
                edge = 0 if codes is None or codes.dtype != np.int32 else at_limits(codes)
                self._parameter(node, index, array, scales, edge)
        for layer in list(self.found):
            for node, index in self._bias_of(layer, fixed):
                bias = constant(node.inputs[index])
                if bias is not None and bias.dtype == np.float32 and bias.size > 1:
                    self._parameter(node, index, bias, None, 0)

    def _bias_of(self, node: ir.Node, fixed: Mapping[ir.Value, bool]) -> Iterator[tuple[ir.Node, int]]:
        """Yield the places where the float bias of a layer is read: node and input."""
        if node.op_type not in LINEAR_OPS:
            return
        behind = [n for n in self.readers[node] if n.op_type in ("Add", "Sum") and self.owners.get(n) is node]
        for reader in [node] if node.op_type != "MatMul" else behind:
            places = (2,) if reader is node else range(len(reader.inputs))
            for index in places:
                value = reader.inputs[index] if index < len(reader.inputs) else None
                if value in fixed and not fixed[value]:  # type: ignore[index]
                    yield reader, index

    def _parameter(
        self, node: ir.Node, index: int, array: NDArray[Any], num_scales: int | None, saturated: int
    ) -> None:
        key = f"{self.names[node]}?{index}"
        self._input(key, ir.DataType.FLOAT, array.shape)
        node.replace_input_with(index, self.model.graph.inputs[-1])
        made = Parameter(self.names[node], index, key, np.ascontiguousarray(array), num_scales, saturated)
        self.found.setdefault(node, []).append(made)

    def _input(self, key: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        value = ir.Value(name=key, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.model.graph.inputs.append(value)
        return value

    def grid_groups(self) -> dict[ir.Node, ir.Node]:
        """Map each quantizer to the node whose site it belongs to.

        Grids that a moving node only passes on are one grid, and belong to the Concat for which they were made equal,
        else to the layer that comes first.
        """
        leader = {quantizer: quantizer for quantizer in self.quantizers}
        by_value = {_source(quantizer): quantizer for quantizer in self.quantizers}

        def find(quantizer: ir.Node) -> ir.Node:
            while leader[quantizer] is not quantizer:
                quantizer = leader[quantizer]
            return quantizer

        concats: dict[ir.Node, ir.Node] = {}
        for quantizer in self.quantizers:
            node = _source(quantizer).producer()
            if node is None or node.op_type not in MOVES:
                continue
            befores = [by_value.get(origin(value)) for value in node.inputs if value is not None]
            equal = [before for before in befores if before is not None and same_grid(before, quantizer)]
            for before in equal:
                leader[find(quantizer)] = find(before)
            if node.op_type == "Concat":
                concats[quantizer] = node
        joined = {find(quantizer): node for quantizer, node in concats.items()}
        return {
            quantizer: joined.get(find(quantizer)) or self._maker(_source(find(quantizer)), quantizer)
            for quantizer in self.quantizers
        }

    def _maker(self, value: ir.Value, quantizer: ir.Node) -> ir.Node:
        """Return the layer a value comes from; the quantizer itself stands for an input of the model."""
        producer = value.producer()
        return self.owners.get(producer, producer) if producer is not None else quantizer

    def tables(self) -> None:
        """Put a switch behind rows of embedding tables: those picked as codes, or the float rows."""
        for node, name in list(self.names.items()):
            table = self.floats.table(name)
            picked = picked_rows(node)
            if table is None or picked is None:
                continue
            key = f"{name}?table"
            rows = ir.node("Gather", [self._input(key, ir.DataType.FLOAT, table.shape), picked.index])
            rows.outputs[0].name = f"{name}?float"
            self.model.graph.insert_after(node, rows)
            self.found.setdefault(node, []).append(Parameter(name, -1, key, table))
            made = self._switch(node.outputs[0], rows, (node.outputs[0], rows.outputs[0]), (name, None))
            self.switches.setdefault(node, []).append(made)

    def pair(self, quantizer: ir.Node) -> None:
        """Put a switch behind a Q/DQ pair."""
        value, readers = _source(quantizer), pair_of(quantizer)
        back = readers[0].outputs[0]
        for other in readers[1:]:
            ir.convenience.replace_all_uses_with(other.outputs[0], back, replace_graph_outputs=True)
        name = next((str(r.outputs[0].name) for r in readers if r.outputs[0].is_graph_output()), str(value.name))
        plain = self._activated(quantizer, value, name)
        made = self._switch(value, readers[0], (back, plain), (name, limits_of(quantizer)))
        self.switches.setdefault(quantizer, []).append(made)

    def _activated(self, quantizer: ir.Node, value: ir.Value, name: str) -> ir.Value:
        """Return the float value with the Relu or Clip that quantizing has left to the limits of the grid."""
        producer = value.producer()
        missing = self.floats.missing_activation(name, "" if producer is None else producer.op_type)
        kept = [] if producer is None else self.readers.get(producer, [])
        if missing is None or any(node.op_type in (missing.op_type, "Max") for node in kept):
            return value
        ends = [
            add_initializer(self.model.graph, f"{name}?end{index}", array)
            for index, array in enumerate(self.floats.numbers(missing)[1:])
        ]
        node = ir.node(missing.op_type, [value, *ends], {})
        node.outputs[0].name = f"{name}?activated"
        self.model.graph.insert_before(quantizer, node)
        return node.outputs[0]

    def _switch(self, value: ir.Value, last: ir.Node, ways: tuple[ir.Value, ir.Value], facts: Facts) -> Switch:
        """Let every reader of the rounded value read either value, behind `last`."""
        rounded, plain = ways
        name, limits = facts
        key = f"{name}?on{len(self.mixed)}"
        choice = ir.node("Where", [self._input(key, ir.DataType.BOOL, ()), *ways])
        self.model.graph.insert_after(last, choice)
        was_output, out = rounded.is_graph_output(), choice.outputs[0]
        ir.convenience.replace_all_uses_with(rounded, out, replace_graph_outputs=True)
        choice.replace_input_with(1, rounded)
        out.name, out.type = f"{name}?mixed{len(self.mixed)}", ir.TensorType(ir.DataType.FLOAT)
        if was_output:
            out.name, rounded.name = rounded.name, f"{name}?rounded"
        self.mixed[value] = str(out.name)
        return Switch(name, key, str(plain.name), str(rounded.name), limits)

    def sites(self, groups: Mapping[ir.Node, ir.Node]) -> Iterator[Site]:
        """Yield sites, in dataflow order: what belongs together."""
        switches: dict[ir.Node, list[Switch]] = {}
        for at, made in self.switches.items():
            switches.setdefault(groups.get(at, at), []).extend(made)
        parameters: dict[ir.Node, list[Parameter]] = {}
        for node, found in self.found.items():
            parameters.setdefault(self.owners[node], []).extend(found)
        order = {node: index for index, node in enumerate(self.model.graph)}
        for node in sorted(switches.keys() | parameters.keys(), key=order.__getitem__):
            yield self._site(node, switches.get(node, []), parameters.get(node, []))

    def _site(self, node: ir.Node, switches: list[Switch], parameters: list[Parameter]) -> Site:
        if node not in self.names:  # the quantizer of an input
            name, value = switches[0].name, self.mixed[_source(node)]
            return Site(name, "input", value, (), tuple(switches), (), self._layers(self.readers[node]))
        moving = [value for value in node.inputs if value is not None and not value.is_initializer()]
        parts = [str(value.name) for value in moving] if node.op_type == "Concat" else []
        last, readers = node, self.readers[node]
        while len(readers) == 1 and self.owners.get(readers[0]) is node:
            last, readers = readers[0], self.readers[readers[0]]
        value = self.mixed.get(last.outputs[0], name_of(last))
        return Site(
            self._label(node), node.op_type, value, tuple(parts), tuple(switches),
            tuple(parameters), self._layers(readers),
        )  # fmt: skip

    def _label(self, node: ir.Node) -> str:
        """Return the float model's name of a node."""
        found = self.floats.named(self.names[node], node.op_type)
        return name_of(found[0]) if found else self.names[node]

    def _layers(self, readers: Sequence[ir.Node]) -> tuple[str, ...]:
        """Return the linear layers that read a value, directly or behind what only moves it."""
        names: dict[str, None] = {}
        waiting = list(readers)
        while waiting:
            node = waiting.pop(0)
            if node.op_type in LINEAR_OPS and node in self.names:
                names[self._label(node)] = None
            elif node.op_type in MOVES and node in self.readers:
                waiting += self.readers[node]
        return tuple(names)


def _called(node: ir.Node) -> str:
    """Return the name of a node's first output, or of the model's output that a pair behind it gives."""
    value = next((value for value in node.outputs if value.name), node.outputs[0])  # of an LSTM, the state alone
    for use in value.uses():
        for reader in pair_of(use.node):
            if reader.outputs[0].is_graph_output():
                return str(reader.outputs[0].name)
    return str(value.name)


def _source(quantizer: ir.Node) -> ir.Value:
    return origin(pair_of(quantizer)[0].outputs[0])
