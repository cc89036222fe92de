"""Names in both models: which node of the float model a node of the quantized model was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.linear import constant, name_of

ACTIVATIONS = ("Relu", "Clip")
"""Operators that the limits of a grid can stand for."""


@dataclass
class FloatNodes:
    """Nodes of the float model by name, as it came and as quantizers prepare it.

    Attributes:
        models: The prepared model first.
        refitted: Names of layers whose weights are others in the quantized model on purpose.
    """

    models: Sequence[ir.Model]
    refitted: frozenset[str] = frozenset()
    nodes: list[dict[str, ir.Node]] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = [{name_of(node): node for node in model.graph if node.outputs} for model in self.models]

    @property
    def names(self) -> frozenset[str]:
        """Names of all nodes."""
        return frozenset(name for nodes in self.nodes for name in nodes)

    def named(self, name: str, op_type: str) -> list[ir.Node]:
        """Return nodes that may have become the one of that name, best first.

        A quantizer that leaves a Relu to the limits of a grid gives its name to the layer in front of it.
        """
        candidates = []
        for nodes in self.nodes:
            node = nodes.get(name)
            if node is not None and node.op_type in ACTIVATIONS and op_type != node.op_type:
                node = None if node.inputs[0] is None else node.inputs[0].producer()
            if node is not None and (node.op_type == op_type or {node.op_type, op_type} == {"Add", "Sum"}):
                candidates.append(node)
        return candidates

    def missing_activation(self, name: str, op_type: str) -> ir.Node | None:
        """Return the Relu or Clip of the float model that a value of the quantized one, made by `op_type`, has lost."""
        for nodes in self.nodes:
            node = nodes.get(name)
            if node is None:
                continue
            if node.op_type in ACTIVATIONS:
                return node if op_type not in (*ACTIVATIONS, "Max") else None
            readers = consumers(node.outputs[0])
            if len(readers) == 1 and readers[0].op_type in ACTIVATIONS:
                return readers[0]
        return None

    def numbers(self, node: ir.Node) -> list[NDArray[Any]]:
        """Return the constant inputs of a node; an empty array for each of the others."""
        arrays = [constant(value) for value in node.inputs]
        return [np.zeros(0, np.float32) if array is None else array for array in arrays]

    def table(self, name: str) -> NDArray[Any] | None:
        """Return the embedding table that the Gather of that name picks rows of; None if there is none."""
        for nodes in self.nodes:
            node = nodes.get(name)
            if node is not None and node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
                array = constant(node.inputs[0])
                if array is not None and array.dtype == np.float32 and array.ndim == 2:
                    return array
        return None


def pair_of(quantizer: ir.Node) -> list[ir.Node]:
    """Return the DequantizeLinear nodes behind a QuantizeLinear that nothing else reads."""
    if quantizer.op_type != "QuantizeLinear" or quantizer.domain:
        return []
    readers = [use.node for use in quantizer.outputs[0].uses()]
    return readers if all(reader.op_type == "DequantizeLinear" for reader in readers) else []


def origin(value: ir.Value) -> ir.Value:
    """Return the value before rounding; the Clip that short words need belongs to the rounding."""
    back = value.producer()
    quantizer = None if back is None or back.op_type != "DequantizeLinear" else back.inputs[0].producer()  # type: ignore[union-attr]
    if quantizer is None or not pair_of(quantizer) or quantizer.inputs[0] is None:
        return value
    source = quantizer.inputs[0]
    clip = source.producer()
    return clip.inputs[0] or source if clip is not None and is_limit(clip) else source


def is_limit(node: ir.Node) -> bool:
    """Whether a node is the Clip that short words need in front of a QuantizeLinear to bytes."""
    return node.op_type == "Clip" and str(node.outputs[0].name).endswith("_clipped")


def consumers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read a value, rounded or not."""
    readers: dict[ir.Node, None] = {}
    for use in value.uses():
        inner = [use.node]
        if is_limit(use.node):
            inner = [other.node for other in use.node.outputs[0].uses()]
        for node in inner:
            backs = pair_of(node)
            for reader in [other.node for back in backs for other in back.outputs[0].uses()] if backs else [node]:
                readers[reader] = None
    return list(readers)
