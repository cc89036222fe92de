"""Writer of standard operators in place of one fused node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.linear import name_of

Outputs = list[ir.Value | None]
"""Values that stand for the outputs of a fused node, in its order; None for those that nobody reads."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of values on one sample, by name."""

NONE: Mapping[str, int] = MappingProxyType({})
CONVOLUTION = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
LONE = ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus", "HardSwish")
"""Activations without settings."""

WITH_SETTINGS = {
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "ThresholdedRelu": ("alpha",),
}


class Writer:
    """A writer of standard operators in place of one fused node.

    Attributes:
        graph: Graph of the node, which constants are added to.
        node: The fused node.
        shapes: Shapes of its inputs on a sample; empty if nothing was run.
        channels: Channels of values that lie in blocks.
        tape: The operators so far.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node, shapes: Shapes, channels: Mapping[str, int] = NONE) -> None:
        """Start writing; the graph's nodes stay as they are."""
        self.graph, self.node, self.shapes, self.channels, self.tape = graph, node, shapes, channels, Tape()

    def input(self, index: int) -> ir.Value | None:
        """Return an input of the fused node, or None where it is left out."""
        return self.node.inputs[index] if len(self.node.inputs) > index else None

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """Return the shape of a value, None for an extent that is not known; None if not even the rank is."""
        if value is None:
            return None
        if value.shape is not None and all(isinstance(extent, int) for extent in value.shape):
            return tuple(extent if isinstance(extent, int) else None for extent in value.shape)
        if str(value.name) in self.shapes:
            return self.shapes[str(value.name)]
        return None if value.shape is None else tuple(n if isinstance(n, int) else None for n in value.shape)

    def is_read(self, index: int) -> bool:
        """Whether anything reads an output of the fused node."""
        if len(self.node.outputs) <= index:
            return False
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: str | float | Sequence[int]) -> ir.Value:
        """Write one more operator and return its result."""
        return self.tape.op(op_type, list(inputs), attributes)

    def constant(self, values: object, name: str, dtype: type = np.float32) -> ir.Value:
        """Add a constant to the graph."""
        return add_initializer(
            self.graph, fresh_name(self.graph, f"{name_of(self.node)}_{name}"), np.asarray(values, dtype)
        )

    def sum(self, *values: ir.Value | None) -> ir.Value:
        """Write the sum of those values that are not None."""
        there = [value for value in values if value is not None]
        total = there[0]
        for value in there[1:]:
            total = self.op("Add", total, value)
        return total

    def extent(self, value: ir.Value | None, axis: int) -> ir.Value:
        """Write an extent of a value, as a vector of one number."""
        ends = self.constant([axis], "from", np.int64), self.constant([axis + 1], "to", np.int64)
        return self.op("Slice", self.op("Shape", value), *ends)

    def activated(self, value: ir.Value, kind: str, settings: Sequence[float | None]) -> ir.Value | None:
        """Write the activation behind a fused layer; None for one that is not known.

        Args:
            value: What it reads.
            kind: Its operator; empty for none.
            settings: In the order of the fused operator's attributes; None where the operator's default holds.
        """
        if not kind:
            return value
        if kind in LONE:
            return self.op(kind, value)
        if kind == "Clip" and len(settings) == 2:
            return self.op("Clip", value, self.constant(settings[0], "least"), self.constant(settings[1], "most"))
        if kind not in WITH_SETTINGS:
            return None
        pairs = zip(WITH_SETTINGS[kind], settings, strict=False)
        return self.op(kind, value, **{name: setting for name, setting in pairs if setting is not None})
