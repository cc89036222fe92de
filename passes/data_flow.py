"""Flow of data through a graph: which values quantizing changes, and which have another size or order then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import onnx_ir as ir

from ptq.passes.unused import bodies_of

ROUNDED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})
"""Operators whose results quantizing changes; so it does those of tables, and of operators that nobody knows."""

SELECTING = {"NonMaxSuppression": 0, "NonZero": 0, "Unique": 0, "TopK": 1}
"""Operators that select -> output that says what."""

NUM_READ = {"NonMaxSuppression": 2}
"""Operators -> inputs that they select by; the others do by their first."""

SIZED = {
    "Range": (0, 1, 2), "Expand": (1,), "Tile": (1,), "Reshape": (1,), "Resize": (1, 2, 3), "Upsample": (1,),
    "ConstantOfShape": (0,), "Slice": (1, 2, 4), "Pad": (1,), "OneHot": (1,), "Split": (1,), "SplitToSequence": (1,),
    "TopK": (1,), "Compress": (1,), "If": (0,), "Loop": (0, 1), "SequenceAt": (1,), "CenterCropPad": (1,),
}  # fmt: skip
"""Operators -> inputs that sizes or places of their results depend on."""

STANDARD = ("", "ai.onnx", "ai.onnx.ml")


@dataclass
class DataFlow:
    """Walk along the flow of data.

    Attributes:
        given: Values that are alike in both models, because somebody gives them.
        tainted: Values that are others in a quantized model.
        moved: Values whose size or order is.
        deciders: Values that decide a size or an order and that nobody gives, as they come along the way.
    """

    given: Mapping[ir.Value, None] = field(default_factory=dict)
    tainted: set[ir.Value] = field(default_factory=set)
    moved: set[ir.Value] = field(default_factory=set)
    deciders: dict[ir.Value, None] = field(default_factory=dict)

    def visit(self, graph: ir.Graph) -> None:
        """Walk through a graph and its bodies."""
        for node in graph:
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        op_type = node.op_type if node.domain in STANDARD else ""
        sizes = [value for value in _picked(node, SIZED.get(op_type, ())) if value in self.tainted]
        self.deciders.update(dict.fromkeys(sizes))
        if any(bodies_of(node)):
            self._visit_bodies(node, moved=bool(sizes))
            return
        inputs = [value for value in node.inputs if value is not None]
        if op_type in ("Shape", "Size"):
            self._mark(node.outputs, tainted=inputs[0] in self.moved, moved=False)
            return
        tainted = not op_type or op_type in ROUNDED or _is_table(node) or any(v in self.tainted for v in inputs)
        self._mark(node.outputs, tainted=tainted, moved=bool(sizes) or self._moves(node, op_type, inputs))
        if op_type in SELECTING and any(value in self.tainted for value in inputs[: NUM_READ.get(op_type, 1)]):
            chosen = node.outputs[SELECTING[op_type]]
            self._mark([chosen], tainted=True, moved=True)
            by_mask = op_type == "NonZero" and inputs[0].dtype == ir.DataType.BOOL
            self.deciders.update({} if chosen in self.given else {inputs[0] if by_mask else chosen: None})

    def _moves(self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value]) -> bool:
        """Whether results have another size or order because what the node reads has."""
        if op_type == "TopK":  # as many as asked for, in the order of their size
            return node.attributes.get_int("sorted", 1) == 0 and inputs[0] in self.tainted
        if op_type.startswith("Scatter"):  # to places that count from the start of the first
            return inputs[0] in self.moved
        if op_type.startswith("Global") or (op_type.startswith("Reduce") and _reduces_all(node)):
            return False
        return any(value in self.moved for value in inputs)

    def _mark(self, values: Sequence[ir.Value], *, tainted: bool, moved: bool) -> None:
        free = [value for value in values if value not in self.given]
        if tainted or moved:
            self.tainted.update(free)
        if moved:
            self.moved.update(free)

    def _copy(self, sources: Sequence[ir.Value | None], values: Sequence[ir.Value]) -> None:
        """Let values be as those are that they are made of."""
        for source, value in zip(sources, values, strict=False):
            if source is not None:
                self._mark([value], tainted=source in self.tainted, moved=source in self.moved)

    def _visit_bodies(self, node: ir.Node, *, moved: bool) -> None:
        bodies, before = list(bodies_of(node)), (-1, -1)
        skipped = {"Loop": 2, "Scan": 0}.get(node.op_type)
        while before != (len(self.tainted), len(self.moved)):
            before = len(self.tainted), len(self.moved)
            for body in bodies:
                self.visit(body)
                results = list(body.outputs)
                if skipped is not None:
                    self._copy(node.inputs[skipped:], body.inputs[skipped:])
                    results = results[1:] if node.op_type == "Loop" else results
                    self._copy(results, body.inputs[skipped:][: _num_states(node)])
                self._copy(results, node.outputs)
        stops = node.op_type == "Loop" and bodies[0].outputs[0] in self.tainted
        self._mark(node.outputs, tainted=False, moved=moved or stops)


def _num_states(node: ir.Node) -> int:
    """Count the values that an iteration hands to the next."""
    if node.op_type == "Loop":
        return max(len(node.inputs) - 2, 0)
    return len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)


def _picked(node: ir.Node, indices: Sequence[int]) -> list[ir.Value]:
    values = [node.inputs[index] for index in indices if index < len(node.inputs)]
    return [value for value in values if value is not None]


def _is_table(node: ir.Node) -> bool:
    """Whether a node picks rows of constant floats."""
    table = next(islice(node.inputs, 1), None)
    is_float = table is not None and table.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return node.op_type == "Gather" and is_float and table is not None and table.is_initializer()


def _reduces_all(node: ir.Node) -> bool:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    return axes is None and "axes" not in node.attributes
