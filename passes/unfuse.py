"""Operators that onnxruntime's optimizers have fused, written as standard ones again.

What is fused hides weights, values and normalizations from every other pass. onnxruntime fuses them again where that
is faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ptq.passes.fused import ASKING, FORMS, Outputs, Shapes, Writer, blocked_channels
from ptq.passes.linear import constant, name_of
from ptq.passes.normalize import RaiseOpset

FUNCTION_OPSET = 17  # LayerNormalization


@dataclass(frozen=True)
class Unfuse(ir.passes.InPlacePass):
    """Replace fused operators of onnxruntime's own domains.

    Before: Attention, SkipLayerNormalization, EmbedLayerNormalization, BiasGelu, FusedConv, FusedMatMul, FusedGemm, ...
    After:  MatMul, Conv, Gemm, Add, Softmax, LayerNormalization, Gather, Erf, Tanh, ...
    Requires: constants are initializers.
    Ensures: forms that it does not know stay as they are, and so do all where the operator set cannot be raised to one
        that has LayerNormalization.
    Preserves float outputs: yes, within rounding.

    Attributes:
        shapes: Shapes of the values that fused operators read, on one sample. Forms that need one which is neither
            here nor in the model stay.
    """

    shapes: Shapes = field(default_factory=dict)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every operator whose form is known."""
        if not any(True for _ in fused_nodes(model)):
            return ir.passes.PassResult(model, False)
        modified = bool(RaiseOpset(FUNCTION_OPSET, required=False)(model).modified)
        if model.opset_imports.get("", 0) < FUNCTION_OPSET:
            return ir.passes.PassResult(model, False)
        channels, taken = blocked_channels(model.graph, self.shapes), _names(model)
        for node in list(fused_nodes(model)):
            graph = node.graph
            if not isinstance(graph, ir.Graph):
                continue
            writer = Writer(graph, node, self.shapes, channels)
            before = set(graph.initializers)
            outputs = FORMS[node.domain, node.op_type](writer)
            if outputs is None:
                for name in set(graph.initializers) - before:
                    del graph.initializers[name]
                continue
            _put(graph, node, writer, outputs, taken)
            modified = True
        return ir.passes.PassResult(model, modified)


def fused_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the graph and of its bodies that a form is named after, in order."""
    return (node for node in model.graph.all_nodes() if (node.domain, node.op_type) in FORMS)


def values_to_look_at(model: ir.Model) -> list[str]:
    """Return the names of values of the main graph whose shapes a form may ask for and the graph does not tell."""
    nodes = [node for node in fused_nodes(model) if node.graph is model.graph]
    asked = [(node, index) for node in nodes for index in ASKING.get((node.domain, node.op_type), ())]
    values = [node.inputs[index] for node, index in asked if index < len(node.inputs)]
    there = [v for v in values if v is not None and v.name and constant(v) is None and not _is_known(v)]
    return list(dict.fromkeys(str(value.name) for value in there))


def _is_known(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(extent, int) for extent in value.shape)


def _names(model: ir.Model) -> set[str]:
    """Return the names that values of the graph and its bodies have."""
    values = [value for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None]
    return {str(value.name) for value in (*values, *model.graph.inputs, *model.graph.initializers.values())}


def _put(graph: ir.Graph, node: ir.Node, writer: Writer, outputs: Outputs, taken: set[str]) -> None:
    """Put the standard operators in place of the fused one; values keep their names, and new ones tell where from."""
    base, written = name_of(node), set(writer.tape.nodes)
    for old, new in zip(node.outputs, outputs, strict=False):
        if new is None:
            continue
        if new.producer() not in written:  # nothing was to be done
            if not old.is_graph_output():
                ir.convenience.replace_all_uses_with(old, new)
                continue
            new = writer.op("Identity", new)  # noqa: PLW2901
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = name
    counts = itertools.count(1)
    for value in [value for each in writer.tape.nodes for value in each.outputs if value.name is None]:
        names = (f"{base}_{next(counts)}" for _ in itertools.count())
        value.name = next(name for name in names if name not in taken)
        taken.add(value.name)
    graph.insert_before(node, list(writer.tape.nodes))
    graph.remove(node, safe=True)
