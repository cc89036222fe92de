"""Moves that passes share: one node in the place of another, and who alone reads whom."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def alone(value: ir.Value | None) -> ir.Node | None:
    """Return the standard node that makes a value which goes to one place only; None for other values."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain or value.is_graph_output() or len(value.uses()) != 1:
        return None
    return node


def stand_in(graph: ir.Graph, node: ir.Node, *made: ir.Node) -> None:
    """Put nodes in the place of one; the last one's first output takes its name, shape and readers.

    Args:
        graph: Graph of the node; changed in place. What only the node read goes as well.
        node: Node to remove; it has one output that is read.
        made: New nodes in order, the outputs of all but the last one named.
    """
    out, result, sources = node.outputs[0], made[-1].outputs[0], list(node.inputs)
    graph.insert_before(node, list(made))
    name, result.type, result.shape = out.name, out.type, out.shape
    ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)
    out.name, result.name = None, name
    graph.remove(node, safe=True)
    drop_unread(graph, sources)


def drop_unread(graph: ir.Graph, values: Sequence[ir.Value | None]) -> None:
    """Remove the nodes behind values that nothing reads, and what only they read."""
    for value in values:
        node = None if value is None else value.producer()
        if value is None or node is None or node.graph is not graph:
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        sources = list(node.inputs)
        graph.remove(node, safe=True)
        drop_unread(graph, sources)
