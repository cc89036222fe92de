"""Compute between convolutions in their order of axes, where an exporter computes channels last.

TensorFlow has channels last, ONNX's convolutions channels first: converters put a Transpose in front of each and one
behind it, and normalization, residual sums and means stand between these. Integers end there, and nothing folds into
the convolutions. With the nodes between in the order of the convolutions, the Transposes go, and all of it is one kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ptq.passes.axes import Order, dropped, inverse, moving, order_of, reorder, reordered
from ptq.passes.graph import fresh_value_name
from ptq.passes.infer_shapes import infer_statically
from ptq.passes.linear import constant
from ptq.passes.unused import RemoveUnused

LAST: dict[int, Order] = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
"""Number of axes -> the order that brings channels to the end."""


@dataclass(frozen=True)
class ChannelsFirst(ir.passes.InPlacePass):
    """Move Transposes to channels last over the nodes behind them, where fewer are left then.

    Before: y = Conv(T(Relu(Add(T'(Conv(x, W)), c))), V), with T' to channels last and T back
    After:  y = Conv(Relu(Add(Conv(x, W), c')), V)
    Requires: nodes that work at each place, or along axes that they name; the number of axes of what they read
    Ensures: no Transpose is undone by the next one; values that others read, and outputs, keep their order and name
    Preserves float outputs: yes, exactly but for the order of sums.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take regions of nodes that may have either order, one after the other."""
        orders = {order for node in model.graph if (order := order_of(node)) is not None}
        ranks = [rank for rank, last in LAST.items() if {last, inverse(last)} <= orders]
        modified = _cancel(model.graph)
        if ranks:
            infer_statically(model)
        for rank in ranks:
            for nodes in _regions(model.graph, rank):
                region = _Region(model.graph, rank, nodes)
                if region.is_worth_it():
                    region.turn()
                    modified = True
        if modified:
            _cancel(model.graph)
            RemoveUnused()(model)
        return ir.passes.PassResult(model, modified)


def _cancel(graph: ir.Graph) -> bool:
    """Read what a Transpose reads in the place of one that undoes it."""
    changed = False
    for node in list(graph):
        order, source = order_of(node), node.inputs[0] if node.inputs else None
        before = None if source is None else source.producer()
        if order is None or before is None or order_of(before) != inverse(order) or before.graph is not graph:
            continue
        if not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], before.inputs[0])  # type: ignore[arg-type]
            graph.remove(node, safe=True)
            changed = True
    return changed


def _regions(graph: ir.Graph, rank: int) -> list[list[ir.Node]]:
    """Return the nodes that may have either order, in groups that hang together, each in the order of the graph."""
    group: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        if not _may_turn(node, rank):
            continue
        group[node] = [node]
        for value in moving(node) or ():
            makers = [producer] if (producer := value.producer()) is not None else []
            for other in (*makers, *(use.node for use in value.uses())):
                if (
                    other in group
                    and (other is not producer or dropped(other) is None)
                    and group[other] is not group[node]
                ):
                    joined = group[other] + group[node]
                    group.update(dict.fromkeys(joined, joined))
    places = {node: place for place, node in enumerate(graph)}
    unique = {id(nodes): nodes for nodes in group.values()}
    return [sorted(nodes, key=places.__getitem__) for nodes in unique.values()]


def _may_turn(node: ir.Node, rank: int) -> bool:
    """Whether a node can compute channels first what it computes channels last."""
    sources, arrays = moving(node), [array for value in node.inputs if (array := constant(value)) is not None]
    if (
        not sources
        or any(array.ndim > rank for array in arrays)
        or any(value.shape is None or len(value.shape) != rank for value in sources)
    ):
        return False
    lost = dropped(node)
    return lost is None or sorted(axis % rank for axis in lost) == list(range(1, rank - 1))


def _undoes(node: ir.Node, first: Order) -> bool:
    """Whether a node brings channels back to the front, for others in the graph."""
    return order_of(node) == first and not node.outputs[0].is_graph_output()


@dataclass
class _Region:
    """Nodes that hang together and may have either order.

    Attributes:
        graph: Their graph.
        rank: Number of axes of what they read.
        nodes: In the order of the graph.
    """

    graph: ir.Graph
    rank: int
    nodes: list[ir.Node]
    _turned: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def is_worth_it(self) -> bool:
        """Whether fewer Transposes are left."""
        inside, read = set(self.nodes), dict.fromkeys(value for node in self.nodes for value in moving(node) or ())
        less = more = 0
        for value in read:
            maker = value.producer()
            if maker in inside:
                continue
            if order_of(maker) == self.last:
                less += not value.is_graph_output() and all(self._agrees(use.node, inside) for use in value.uses())
            else:
                more += not any(_undoes(use.node, self.first) for use in value.uses())
        for node in self.nodes:
            if dropped(node) is None:
                undone = [use.node for use in node.outputs[0].uses() if _undoes(use.node, self.first)]
                less, more = less + len(undone), more + bool(self._outside(node, inside))
        return less > more

    @property
    def last(self) -> Order:
        """The order to channels last."""
        return LAST[self.rank]

    @property
    def first(self) -> Order:
        """The order back."""
        return inverse(self.last)

    def turn(self) -> None:
        """Compute all nodes channels first."""
        inside = set(self.nodes)
        for node in self.nodes:
            outside, sources = self._outside(node, inside), {id(value): value for value in moving(node) or ()}
            reorder(self.graph, node, self.first)
            for index, value in enumerate(node.inputs):
                if value is not None and id(value) in sources:
                    node.replace_input_with(index, self._source(value))
            if dropped(node) is None:
                self._keep(node, list(outside))

    def _source(self, value: ir.Value) -> ir.Value:
        """Return a value with its channels first."""
        maker = value.producer()
        if value not in self._turned and order_of(maker) == self.last and maker is not None:
            self._turned[value] = maker.inputs[0]  # type: ignore[assignment] # a Transpose reads something
        if value not in self._turned and maker not in self.nodes:
            node = ir.node("Transpose", [value], {"perm": self.first}, name="")
            result = node.outputs[0]
            result.name = fresh_value_name(self.graph, f"{value.name}_first")
            result.type, result.shape = value.type, reordered(value.shape, self.first)
            if maker is not None and maker.graph is self.graph:
                self.graph.insert_after(maker, node)
            else:
                self.graph.insert_before(self.graph[0], node)
            self._turned[value] = result
        return self._turned.get(value, value)

    def _keep(self, node: ir.Node, outside: list[ir.Node | None]) -> None:
        """Let those that turned a result read it as it is by now, and others as it was, under the name that it had."""
        result = node.outputs[0]
        shape, result.shape = result.shape, reordered(result.shape, self.first)
        for use in list(result.uses()):
            if _undoes(use.node, self.first):
                ir.convenience.replace_all_uses_with(use.node.outputs[0], result)
        if not outside:
            return
        back, name = ir.node("Transpose", [result], {"perm": self.last}, name=""), str(result.name)
        kept, inner = back.outputs[0], [use for use in result.uses() if use.node not in (back, *outside)]
        ir.convenience.replace_all_uses_with(result, kept, replace_graph_outputs=True)
        for reader, index in ((back, 0), *((use.node, use.idx) for use in inner)):
            reader.replace_input_with(index, result)
        node.name = node.name or name
        result.name = fresh_value_name(self.graph, f"{name}_first")
        kept.name, kept.type, kept.shape = name, result.type, shape
        self.graph.insert_after(node, back)

    def _agrees(self, node: ir.Node, inside: set[ir.Node]) -> bool:
        return node in inside or _undoes(node, self.first)

    def _outside(self, node: ir.Node, inside: set[ir.Node]) -> list[ir.Node | None]:
        """Return who reads the result channels last; None stands for the caller of the model."""
        result = node.outputs[0]
        readers: Iterator[ir.Node] = (use.node for use in result.uses() if not self._agrees(use.node, inside))
        return [*readers, *([None] if result.is_graph_output() else [])]
