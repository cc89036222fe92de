"""Lowering of functions of one code to a table of 256, which domain ai.ptq looks up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.models.sessions import run, session_of
from ptq.passes.graph import add_initializer, fresh_name, fresh_value_name
from ptq.passes.linear import constant
from ptq.passes.native_bodies import DOMAIN, LOOKUP
from ptq.passes.rewire import drop_unread
from ptq.target import LINEAR_OPS

CODING = frozenset({"QuantizeLinear", "DequantizeLinear"})
ELEMENTWISE = CODING | {
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log",
    "Max", "Min", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum", "Tanh", "ThresholdedRelu",
}  # fmt: skip
"""Operators whose result at a place depends on their inputs at that place."""

POOLING = frozenset({"AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Resize"})
"""Operators between images."""

NUM_CODES = 256
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def write_tables(model: ir.Model) -> bool:
    """Replace what lies between codes and codes by a table, where it reads one value and numbers.

    Args:
        model: Lowered; changed in place.

    Returns:
        Whether a table was written.
    """
    sources = dict[ir.Value, frozenset[ir.Value]]()
    for node in model.graph:
        for value in node.outputs:
            sources[value] = _sources(node, value, sources)
    written = False
    for node in reversed(list(model.graph)):  # of several in a row, the last one takes the others in
        if node.graph is not None and node.op_type == "QuantizeLinear" and not node.domain:
            found = sources[node.outputs[0]]
            source = next(iter(found), node.outputs[0])
            if len(found) == 1 and source is not node.outputs[0] and (between := _between(node, source)):
                _look_up(model, node, source, between)
                written = True
    return written


def _sources(node: ir.Node, value: ir.Value, known: dict[ir.Value, frozenset[ir.Value]]) -> frozenset[ir.Value]:
    """Return the values that a value is a function of, place by place: itself where codes come of no others' codes."""
    if node.op_type not in ELEMENTWISE or node.domain:
        return frozenset({value})
    read = [each for each in node.inputs if each is not None]
    if any((array := constant(each)) is not None and array.size != 1 for each in read):
        return frozenset({value})
    found = frozenset[ir.Value]().union(
        *(known.get(each, frozenset({each})) for each in read if constant(each) is None)
    )
    of_codes = len(found) == 1 and all(each.dtype == ir.DataType.UINT8 for each in found)
    return frozenset({value}) if value.dtype == ir.DataType.UINT8 and not of_codes else found


def _between(end: ir.Node, source: ir.Value) -> list[ir.Node]:
    """Return the nodes from a source to an end in order; none where they only decode and encode."""
    found, stack = dict[ir.Node, None](), [end]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            makers = (value.producer() for value in node.inputs if value is not None and value is not source)
            stack += [maker for maker in makers if maker is not None]
    graph = end.graph
    if graph is None or all(node.op_type in CODING for node in found):
        return []
    return [node for node in graph if node in found]


def _look_up(model: ir.Model, end: ir.Node, source: ir.Value, between: list[ir.Node]) -> None:
    """Let the readers of codes read them from a table, with channels last where images are."""
    out, graph = end.outputs[0], model.graph
    name = str(out.name)
    table = add_initializer(graph, fresh_name(graph, f"{name}_table"), _codes(model, end, source, between))
    nodes, codes = [], source
    image = source.shape is not None and len(source.shape) == 4 and _is_image(source)
    if image:
        nodes.append(ir.node("Transpose", [codes], {"perm": TO_LAST}, name=""))
        codes = nodes[-1].outputs[0]
        codes.name = fresh_value_name(graph, f"{name}_last")
    nodes.append(ir.node(LOOKUP, [codes, table], domain=DOMAIN, name=end.name))
    if image:
        nodes[-1].outputs[0].name = fresh_value_name(graph, f"{name}_found")
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": TO_FIRST}, name=""))
    for node in nodes:
        node.outputs[0].type = out.type
    result = nodes[-1].outputs[0]
    result.shape = out.shape
    graph.insert_before(end, nodes)
    ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)
    out.name, result.name = None, name
    drop_unread(graph, [out])


def _codes(model: ir.Model, end: ir.Node, source: ir.Value, between: list[ir.Node]) -> NDArray[np.uint8]:
    """Run the nodes between on all codes."""
    x = ir.Value(name="x", shape=ir.Shape([NUM_CODES]), type=ir.TensorType(ir.DataType.UINT8))
    copies, constants = {source: x}, list[ir.Value]()
    nodes = []
    for node in between:
        inputs = [None if value is None else _copy(value, copies, constants) for value in node.inputs]
        made = ir.Node("", node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type, copies[old] = f"v{len(copies)}", old.type, new
        nodes.append(made)
    y = copies[end.outputs[0]]
    y.shape = ir.Shape([NUM_CODES])
    graph = ir.Graph([x], [y], nodes=nodes, initializers=constants, opset_imports={"": model.opset_imports[""]})
    alone = ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
    with session_of(alone) as session:
        (found,) = run(session, {"x": np.arange(NUM_CODES, dtype=np.uint8)})
    return np.asarray(found, np.uint8)


def _copy(value: ir.Value, copies: dict[ir.Value, ir.Value], constants: list[ir.Value]) -> ir.Value:
    if value not in copies:
        tensor = ir.tensor(np.asarray(constant(value)).reshape(()), name=f"c{len(copies)}")
        made = ir.Value(name=tensor.name, shape=ir.Shape(()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        copies[value] = made
        constants.append(made)
    return copies[value]


def _is_image(codes: ir.Value) -> bool:
    """Whether codes are what a convolution makes, or what is computed of that place by place."""
    current, node = codes, codes.producer()
    while node is not None and not (node.op_type in LINEAR_OPS or node.domain):
        current = next((value for value in node.inputs if value is not None and constant(value) is None), current)
        node = current.producer() if node.op_type in ELEMENTWISE | POOLING else None
    return node is not None and "Conv" in node.op_type
