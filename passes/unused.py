"""Removal of what nothing reads: nodes and constants, also inside the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common


@dataclass(frozen=True)
class RemoveUnused(ir.passes.InPlacePass):
    """Remove nodes and constants that no output depends on.

    The stock pass keeps the constants of bodies, and whatever the bodies of nodes that it removes have read.

    Before: nodes that nothing reads, constants of any graph that nothing reads
    After:  neither
    Requires: nothing
    Ensures: every node and constant is read, inputs and outputs of the model are as they were
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the stock pass until removed bodies read nothing, and drop the constants of the bodies left."""
        modified, has_changed = False, True
        while has_changed:
            carriers = [node for node in model.graph.all_nodes() if any(bodies_of(node))]
            modified |= bool(common.RemoveUnusedNodesPass()(model).modified)
            has_changed = sum(_detach(node) for node in carriers if node.graph is None) > 0
        for graph in {node.graph: None for node in model.graph.all_nodes() if isinstance(node.graph, ir.Graph)}:
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
                    modified = True
        return ir.passes.PassResult(model, modified)


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node carries."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _detach(node: ir.Node) -> bool:
    """Let the bodies of a node that is gone read nothing; return whether they did."""
    inner = [each for graph in bodies_of(node) for each in graph.all_nodes()]
    reads = any(value is not None for each in inner for value in each.inputs)
    for each in inner:
        for index in range(len(each.inputs)):
            each.replace_input_with(index, None)
    return reads
