"""Writer of nodes and constants that lowering adds to a graph, under names that nothing else has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.graph import add_initializer

Store = Callable[[str, NDArray[Any]], ir.TensorProtocol]
"""Function that stores a new constant's numbers."""


@dataclass
class GraphWriter:
    """Writer into one graph.

    Attributes:
        graph: Graph that is changed in place.
        store: Store that numbers go to; None keeps them in memory.
        first: Node in front of which constants are decoded; None before there are any.
    """

    graph: ir.Graph
    store: Store | None = None
    first: ir.Node | None = None
    names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = {str(value.name) for value in (*self.graph.inputs, *self.graph.initializers.values())}
        for node in self.graph.all_nodes():  # what bodies call their own must not be taken either
            self.names |= {str(value.name) for value in (*node.inputs, *node.outputs) if value is not None}

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        kind: tuple[ir.DataType | None, ir.Shape | None],
        attributes: Mapping[str, int | Sequence[int]] | None = None,
    ) -> ir.Value:
        """Make a node of one result, not yet in the graph.

        Args:
            op_type: Operator.
            inputs: Values that it reads.
            name: Name of the result, which gets a number if it is taken.
            kind: Element type and shape of the result, as far as they are known.
            attributes: Attributes of the node.
        """
        made = ir.node(op_type, inputs, attributes or {}, name="")  # in small models names outweigh weights
        out, (dtype, out.shape) = made.outputs[0], kind
        out.name = self.fresh(name)
        if dtype is not None:
            out.dtype = dtype
        return out

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Add a constant; its name gets a number if it is taken."""
        value = add_initializer(self.graph, self.fresh(name), array)
        if self.store is not None:
            value.const_value = self.store(str(value.name), array)
        return value

    def compute_first(self, *values: ir.Value) -> None:
        """Put what is computed from constants in front of the rest, in the order in which it is written."""
        if self.first is None:
            self.first = self.graph[0]
        self.graph.insert_before(self.first, [node for value in values if (node := value.producer()) is not None])

    def fresh(self, name: str) -> str:
        """Return a name that is not in use yet, and is from now on."""
        candidate, count = name, 1
        while candidate in self.names:
            candidate, count = f"{name}_{count}", count + 1
        self.names.add(candidate)
        return candidate
