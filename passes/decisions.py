"""Search for values that decide sizes or order of others: boxes that are kept, rows that are picked, durations.

A quantized model may decide otherwise than the float model where a value is near the border, and everything behind
has another size then, or another order. Two models are compared with the same decisions in both, and in front of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.models.draws import lasting_name
from ptq.passes.data_flow import NUM_READ, SELECTING, DataFlow
from ptq.passes.infer_shapes import exposed, infer_statically
from ptq.passes.unused import RemoveUnused

ROUNDING = frozenset({
    "Ceil", "Floor", "Round", "Sign", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin",
    *SELECTING,
})  # fmt: skip
"""Operators that make decisions of numbers; Cast to integers is another."""

CARRYING = frozenset({
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Clip", "Cast", "Neg", "Abs", "And", "Or", "Not", "Xor", "Where",
    "Identity", "ReduceSum", "ReduceMax", "ReduceMin", "CumSum", "Squeeze", "Unsqueeze", "Reshape", "Flatten",
    "Transpose", "Expand", "Concat", "Gather", "Slice", "Split", "SplitToSequence", "SequenceAt", "SequenceConstruct",
    "ConcatFromSequence",
})  # fmt: skip
"""Operators that carry a decision on to where it decides a size."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Decisions:
    """Values of a float model that decide sizes or order of outputs; empty for most models.

    Attributes:
        values: Names of the values that decide, in dataflow order.
        fronts: Names of the floats that they are decided by.
        moved: Outputs whose size or order they decide.
        computed: Outputs that still depend on what is computed once the decisions are given.
        steady: Values to judge a model by whose decisions nobody gives: outputs that do not move, and the first fronts.
        makers: Operators that decide.
    """

    values: tuple[str, ...] = ()
    fronts: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    steady: tuple[str, ...] = ()
    makers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether any output has a size or order that is decided."""
        return bool(self.moved)

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the values to compare once the decisions are given."""
        return tuple(dict.fromkeys((*self.computed, *self.fronts)))


def decisions_of(model: ir.Model) -> Decisions:
    """Find what decides sizes or order of a model's outputs.

    Args:
        model: Float model without local functions; types that follow from the graph are filled in.

    Returns:
        Its decisions; nothing where sizes and order depend on inputs alone.
    """
    free = DataFlow()
    free.visit(model.graph)
    outputs = list(model.graph.outputs)
    moved = tuple(str(value.name) for value in outputs if value in free.moved)
    if not moved:
        return Decisions()
    infer_statically(model)
    given, flow = _given(model)
    order = [value for node in model.graph for value in node.outputs if value in given]
    fronts = dict.fromkeys(front for value in order for front in _fronts(value, free.tainted))
    known = [value for value in fronts if value in flow.tainted and value not in flow.moved]
    names = tuple(str(value.name) for value in outputs)
    return Decisions(
        tuple(map(lasting_name, order)),
        tuple(map(lasting_name, known)),
        moved,
        tuple(str(value.name) for value in outputs if value in flow.tainted),
        tuple(lasting_name(value) for value in (*outputs, *known) if value not in free.moved) or names,
        tuple(dict.fromkeys(producer.op_type for value in order if (producer := value.producer()) is not None)),
    )


def _given(model: ir.Model) -> tuple[dict[ir.Value, None], DataFlow]:
    """Find the values to be given so that nothing is left to decide, as far as the main graph has them."""
    outer = {value for node in model.graph for value in node.outputs}
    given: dict[ir.Value, None] = {}
    while True:
        flow = DataFlow(given)
        flow.visit(model.graph)
        found = ([v for v in _rounded_behind(d, flow.tainted) or [d] if v in outer] for d in flow.deciders)
        more = next((values for values in found if values), None)
        if more is None:
            return given, flow
        given |= dict.fromkeys(more)


def judged_values(model: ir.Model) -> tuple[str, ...]:
    """Name the values that two float networks of one graph are compared at: the outputs, where these do not move."""
    return decisions_of(model).steady or tuple(str(value.name) for value in model.graph.outputs)


def telling(model: ir.Model, decisions: Decisions) -> ir.Model:
    """Copy a float model with its outputs, decisions and whatever decides them as outputs."""
    outputs = (str(value.name) for value in model.graph.outputs)
    return exposed(model, tuple(dict.fromkeys((*outputs, *decisions.values, *decisions.judged))))


def told(
    model: ir.Model, decisions: Decisions, arrays: Mapping[str, NDArray[Any]]
) -> tuple[ir.Model, tuple[str, ...], tuple[str, ...]]:
    """Copy a model with decisions as inputs, and what is to be compared then as outputs.

    Args:
        model: Float model or one made of it.
        decisions: Of the float model.
        arrays: Decisions on some sample, by name.

    Returns:
        The copy, the names of the decisions among its inputs, and those of its outputs: as many as the model has.
    """
    made = {str(value.name) for node in model.graph for value in node.outputs}
    names = tuple(name for name in decisions.judged if name in made)
    given = tuple(name for name in decisions.values if name in arrays and name in made)
    copy = exposed(model, tuple(dict.fromkeys((*names, *given))))
    values = {str(value.name): value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    give(copy, {name: arrays[name] for name in given})
    RemoveUnused()(copy)
    return copy, given, names


def give(model: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Make values of a model inputs, in place; whatever computed them stays, under other names.

    Args:
        model: Model that has values of these names.
        arrays: The values on some sample, by name, for their types and ranks.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    for name, array in arrays.items():
        new = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        new.shape = ir.Shape([None] * array.ndim)
        for value in list(_same(values[name])):
            ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
        values[name].name = f"{name}?decided"
        model.graph.inputs.append(new)


def _same(value: ir.Value) -> Iterator[ir.Value]:
    """Yield a value, and those that are the same but for rounding to a grid, upwards."""
    yield value
    producer = value.producer()
    if producer is not None and producer.op_type in ("Identity", "DequantizeLinear", "QuantizeLinear"):
        source = producer.inputs[0]
        if source is not None and source.producer() is not None:
            yield from _same(source)


def _rounded_behind(value: ir.Value, tainted: AbstractSet[ir.Value]) -> list[ir.Value]:
    """Find the first decisions that a size comes from: durations rather than their sum."""
    producer = value.producer()
    if producer is None or value not in tainted:
        return []
    rounds = _rounds(producer)
    if not rounds and (producer.op_type not in CARRYING or producer.domain):
        return []
    behind = [each for source in producer.inputs if source is not None for each in _rounded_behind(source, tainted)]
    return behind or ([value] if rounds else [])


def _fronts(value: ir.Value, tainted: AbstractSet[ir.Value]) -> Iterator[ir.Value]:
    """Find the floats that a decision is made of."""
    producer = value.producer()
    if producer is None:
        return
    if _is_float(value) and not _rounds(producer):
        yield value
        return
    selects = producer.op_type in SELECTING and not producer.domain
    count = NUM_READ.get(producer.op_type, 1) if selects else len(producer.inputs)
    for source in producer.inputs[:count]:
        if source is not None and source in tainted:
            yield from [source] if _is_float(source) else _fronts(source, tainted)


def _rounds(node: ir.Node) -> bool:
    if node.domain:
        return False
    source = node.inputs[0] if node.inputs else None
    casts = node.op_type == "Cast" and source is not None and _is_float(source) and not _is_float(node.outputs[0])
    return casts or node.op_type in ROUNDING


def _is_float(value: ir.Value) -> bool:
    return value.dtype in FLOATS
