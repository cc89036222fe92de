"""Models that are spoilt at random: in the terms of a graph, in those of protobuf, or as mere bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx

from tests.trust.vocabulary import (
    BINARY,
    CONTRIBUTED,
    DOMAINS,
    FLOATS,
    LAYERS,
    NUMBERS,
    OPERATORS,
    TYPES,
    UNARY,
    WORDS,
)

Rng = np.random.Generator
Change = Callable[[Rng, onnx.ModelProto, onnx.ModelProto], None]
Value = TypeVar("Value")


def pick(rng: Rng, values: Sequence[Value]) -> Value:
    """One of them."""
    return values[int(rng.integers(len(values)))]


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graph and all inside of its nodes and of functions."""
    found, open_nodes = [model.graph], [*model.graph.node, *(node for each in model.functions for node in each.node)]
    while open_nodes:
        for attribute in open_nodes.pop().attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for graph in (*inner, *attribute.graphs):
                found.append(graph)
                open_nodes.extend(graph.node)
    return found


def _body(rng: Rng, model: onnx.ModelProto) -> Any:
    """A list of nodes: often that of the graph."""
    places: list[Any] = [model.graph, model.graph, *graphs(model), *model.functions]
    return pick(rng, places).node


def _node(rng: Rng, model: onnx.ModelProto) -> onnx.NodeProto:
    body = _body(rng, model) or [model.graph.node.add(op_type="Relu", input=["x"], output=["u"])]
    return pick(rng, body)  # type: ignore[no-any-return]


def _tensor(rng: Rng, model: onnx.ModelProto) -> onnx.TensorProto:
    found = [tensor for graph in graphs(model) for tensor in graph.initializer]
    found += [attribute.t for graph in graphs(model) for node in graph.node for attribute in node.attribute
              if attribute.HasField("t")]  # fmt: skip
    return pick(rng, found or [model.graph.initializer.add(name="u", data_type=1)])  # type: ignore[no-any-return]


def _info(rng: Rng, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    found = [info for graph in graphs(model) for info in (*graph.input, *graph.output, *graph.value_info)]
    return pick(rng, found or [model.graph.value_info.add(name="x")])  # type: ignore[no-any-return]


def _names(model: onnx.ModelProto) -> list[str]:
    nodes = [node for graph in graphs(model) for node in graph.node]
    tensors = [tensor.name for graph in graphs(model) for tensor in graph.initializer]
    names = {name for node in nodes for name in (*node.input, *node.output)} | set(tensors)
    return sorted(names) or ["x"]


def _attribute(rng: Rng, model: onnx.ModelProto) -> onnx.AttributeProto:
    found = [attribute for graph in graphs(model) for node in graph.node for attribute in node.attribute]
    if not found:
        found = [_node(rng, model).attribute.add(name=pick(rng, ("axis", "group", "alpha", "to")), i=1, type=2)]
    return pick(rng, found)  # type: ignore[no-any-return]


def order_of_nodes(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    body = _body(rng, model)
    nodes = list(body)
    rng.shuffle(nodes)
    del body[:]
    body.extend(nodes)


def double_node(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    body = _body(rng, model)
    copy = body.add()
    copy.CopyFrom(pick(rng, body))
    if rng.random() < 0.7:
        copy.output[:] = [f"{name}_2" for name in copy.output]
    if rng.random() < 0.5 and copy.output:
        _rewire(rng, model, copy.output[0])


def _rewire(rng: Rng, model: onnx.ModelProto, name: str) -> None:
    """Let some node, or the graph, read another value."""
    node = _node(rng, model)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = name
    elif model.graph.output:
        pick(rng, model.graph.output).name = name


def drop_node(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    body = _body(rng, model)
    if body:
        node = body.pop(int(rng.integers(len(body))))
        if node.input and node.output and rng.random() < 0.6:
            _rename(model, node.output[0], node.input[0])


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for graph in graphs(model):
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]


def rename_everywhere(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    old, new = pick(rng, _names(model)), pick(rng, (*WORDS, *_names(model)))
    for graph in graphs(model):
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            named.name = new if named.name == old else named.name


def rename_once(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    node, new = _node(rng, model), pick(rng, (*WORDS, *_names(model)))
    side = node.input if rng.random() < 0.6 else node.output
    if side and rng.random() < 0.8:
        side[int(rng.integers(len(side)))] = new
    else:
        side.append(new)


def shorten(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    node = _node(rng, model)
    side = node.input if rng.random() < 0.7 else node.output
    if side:
        side.pop(int(rng.integers(len(side))))


def operator(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    node = _node(rng, model)
    match int(rng.integers(4)):
        case 0:
            node.op_type = pick(rng, (*WORDS, *OPERATORS))
        case 1:
            node.op_type, node.domain = pick(rng, CONTRIBUTED), "com.microsoft"
            model.opset_import.add(domain="com.microsoft", version=1)
        case 2:
            node.op_type = pick(rng, LAYERS)
        case _:
            node.op_type = pick(rng, (*UNARY, *BINARY)).split()[0]


def domain(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    _node(rng, model).domain = pick(rng, DOMAINS)


def attribute_value(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    attribute = _attribute(rng, model)
    match int(rng.integers(6)):
        case 0 if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = pick(rng, NUMBERS)
        case 1 if attribute.ints:
            attribute.ints.pop()
        case 2:
            attribute.ints.append(pick(rng, NUMBERS))
        case 3:
            attribute.f = pick(rng, FLOATS)
        case 4:
            attribute.s = pick(rng, WORDS).encode()
        case _:
            attribute.i = pick(rng, NUMBERS)


def attribute_kind(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    attribute = _attribute(rng, model)
    if rng.random() < 0.5:
        attribute.type = pick(rng, list(onnx.AttributeProto.AttributeType.values()))
    else:
        attribute.name = pick(rng, ("axis", "axes", "group", "pads", "to", "perm", "alpha", "body", "value", *WORDS))


def attribute_count(rng: Rng, model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if node.attribute and rng.random() < 0.5:
        node.attribute.pop(int(rng.integers(len(node.attribute))))
    else:
        copy = onnx.AttributeProto()
        copy.CopyFrom(_attribute(rng, pick(rng, (model, other))))  # protobuf crashes on one that holds the node
        node.attribute.append(copy)


def dims(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    match int(rng.integers(4)):
        case 0 if tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(rng, NUMBERS)
        case 1:
            tensor.dims.insert(int(rng.integers(len(tensor.dims) + 1)), pick(rng, (1, 1, 1, *NUMBERS)))
        case 2:
            tensor.dims[:] = list(tensor.dims)[::-1]
        case _ if tensor.dims:
            tensor.dims.pop(int(rng.integers(len(tensor.dims))))


def declared(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    kind = _info(rng, model).type.tensor_type
    extents = kind.shape.dim
    match int(rng.integers(6)):
        case 0 if extents:
            pick(rng, extents).dim_value = pick(rng, NUMBERS)
        case 1 if extents:
            pick(rng, extents).dim_param = pick(rng, WORDS)
        case 2 if extents:
            pick(rng, extents).Clear()
        case 3:
            extents.add(dim_value=1)
        case 4:
            kind.ClearField("shape")
        case _:
            kind.elem_type = int(rng.integers(-1, 28))


def type_of_data(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    _tensor(rng, model).data_type = int(rng.integers(-1, 28))


def convert(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    """A tensor of another type or shape that is sound in itself."""
    tensor = _tensor(rng, model)
    if tensor.external_data:
        return
    try:
        array = onnx.numpy_helper.to_array(tensor)
        with np.errstate(all="ignore"):
            if rng.random() < 0.5:
                array = array.astype(pick(rng, TYPES))
            else:
                array = np.resize(array, [pick(rng, (0, 1, 1, 2, 3, 4, 8)) for _ in range(int(rng.integers(6)))])
    except Exception:  # it was spoilt before
        return
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def numbers(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    """Odd numbers, in places or everywhere."""
    tensor = _tensor(rng, model)
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.raw_data) % 4:
        tensor.raw_data = bytes(rng.integers(0, 256, len(tensor.raw_data), np.uint8))
        return
    array = np.frombuffer(tensor.raw_data, np.float32).copy()
    odd = rng.random(array.shape) < pick(rng, (0.02, 0.3, 1.0))
    array[odd] = np.float32(pick(rng, FLOATS))
    tensor.raw_data = array.tobytes()


def length(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    match int(rng.integers(5)):
        case 0:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
        case 1:
            tensor.raw_data += bytes(int(rng.integers(1, 9)))
        case 2:
            tensor.float_data.extend(pick(rng, FLOATS) for _ in range(int(rng.integers(1, 9))))
        case 3:
            tensor.int32_data.extend(int(rng.integers(-300, 300)) for _ in range(int(rng.integers(1, 9))))
        case _:
            tensor.ClearField("raw_data")


def external(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    """Entries of external data, of those that have some if any."""
    found = [tensor for graph in graphs(model) for tensor in graph.initializer if tensor.external_data]
    tensor = pick(rng, found) if found and rng.random() < 0.8 else _tensor(rng, model)
    if not tensor.external_data or rng.random() < 0.2:
        tensor.data_location = pick(rng, (onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT))
        tensor.external_data.add(key=pick(rng, ("location", "offset", "length", "checksum", "basepath")), value="0")
    entry = pick(rng, tensor.external_data)
    places = ("m.onnx.data", "m.onnx", "d.npz", ".", "..", "/dev/zero", "./m.onnx.data", "conv_weight.bin")
    entry.value = pick(rng, (*map(str, NUMBERS), *places, *WORDS, "4096", "0x10", "1e3", " 4"))
    if rng.random() < 0.2:
        entry.key = pick(rng, ("location", "offset", "length", "checksum", *WORDS))


def versions(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    match int(rng.integers(4)):
        case 0 if model.opset_import:
            pick(rng, model.opset_import).version = int(pick(rng, (*range(28), *NUMBERS)))
        case 1 if model.opset_import:
            model.opset_import.pop()
        case 2:
            model.opset_import.add(domain=pick(rng, DOMAINS), version=pick(rng, (1, 1, *NUMBERS)))
        case _:
            model.ir_version = int(pick(rng, (*range(15), *NUMBERS)))


def interface(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    """Inputs and outputs of a graph: fewer, more, doubled, or other values."""
    graph = pick(rng, graphs(model))
    side, names = (graph.input if rng.random() < 0.4 else graph.output), _names(model)
    match int(rng.integers(5)):
        case 0 if side:
            side.pop(int(rng.integers(len(side))))
        case 1 if side:
            side.add().CopyFrom(pick(rng, side))
        case 2 if side:
            pick(rng, side).name = pick(rng, names)
        case 3:
            side.add(name=pick(rng, names))
        case _:
            added = side.add(name=pick(rng, names))
            added.type.tensor_type.elem_type = pick(rng, (1, 1, 7, 9, 10, 11))
            if rng.random() < 0.5:
                added.type.tensor_type.shape.dim.add(dim_value=pick(rng, NUMBERS))


def functions(rng: Rng, model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    if not model.functions:
        model.functions.extend(other.functions)
    if not model.functions or rng.random() < 0.2:
        made = model.functions.add(name="made", domain="local", input=["a"], output=["b"])
        made.node.add(op_type=pick(rng, UNARY).split()[0], input=["a"], output=["b"])
        made.opset_import.add(domain="", version=17)
        model.opset_import.add(domain="local", version=1)
    function, node = pick(rng, model.functions), _node(rng, model)
    match int(rng.integers(6)):
        case 0:
            model.functions.add().CopyFrom(function)
        case 1:
            model.functions.remove(function)
        case 2:
            node.op_type, node.domain = function.name, function.domain
        case 3:
            function.input.append(pick(rng, WORDS))
        case 4:
            function.attribute.append(pick(rng, WORDS))
        case _:
            function.opset_import.add(domain=pick(rng, DOMAINS), version=pick(rng, (1, 9, 17, *NUMBERS)))


def bodies(rng: Rng, model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """The graphs inside of nodes: exchanged, emptied, or put where none belongs."""
    inner = graphs(model)[1:]
    given = pick(rng, (*graphs(model), *graphs(other)))
    copy = onnx.GraphProto()
    copy.CopyFrom(given)
    if inner and rng.random() < 0.6:
        pick(rng, inner).CopyFrom(copy)
    elif inner and rng.random() < 0.5:
        pick(rng, inner).Clear()
    else:
        node, name = _node(rng, model), pick(rng, ("then_branch", "else_branch", "body", "value"))
        node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(copy)


def splice(rng: Rng, model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Parts of another model, wired to a value of this one."""
    match int(rng.integers(3)):
        case 0:
            model.MergeFrom(other)
        case 1:
            nodes = list(other.graph.node)
            start = int(rng.integers(len(nodes))) if nodes else 0
            known = {tensor.name for tensor in model.graph.initializer}
            model.graph.initializer.extend(each for each in other.graph.initializer if each.name not in known)
            model.graph.node.extend(nodes[start : start + int(rng.integers(1, 6))])
            _rewire(rng, model, pick(rng, _names(model)))
        case _:
            _node(rng, model).CopyFrom(_node(rng, other))


def insert(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    """A node between a value and its readers."""
    graph = pick(rng, (model.graph, model.graph, *graphs(model)))
    values = [name for node in graph.node for name in node.output if name] or ["x"]
    old, new = pick(rng, values), f"new{len(graph.node)}"
    second = f", {pick(rng, _names(model))}" if rng.random() < 0.4 else ""
    name = pick(rng, BINARY if second else UNARY)
    made = onnx.parser.parse_node(f"u = {name} (v{', v' if second else ''})")
    made.input[:], made.output[:] = [old, *([second[2:]] if second else [])], [new]
    place = next((index + 1 for index, node in enumerate(graph.node) if old in node.output), 0)
    for node in graph.node[place:]:
        node.input[:] = [new if name == old else name for name in node.input]
    for output in graph.output if rng.random() < 0.3 else ():
        output.name = new if output.name == old else output.name
    graph.node.insert(place, made)


def by_reflection(rng: Rng, model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    """Any field of any message."""
    message = pick(rng, list(_messages(model)))
    field = pick(rng, message.DESCRIPTOR.fields)
    try:
        value = getattr(message, field.name)
        if hasattr(value, "extend"):
            _change_list(rng, value, field)
        elif field.message_type is not None:
            if rng.random() < 0.5:
                message.ClearField(field.name)
            else:
                value.SetInParent()
        else:
            setattr(message, field.name, _scalar(rng, field))
    except (ValueError, TypeError, OverflowError):  # not a value for that field
        message.ClearField(field.name)


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if hasattr(value, "extend") else [value]:
                yield from _messages(each)


def _change_list(rng: Rng, values: Any, field: Any) -> None:
    match int(rng.integers(4)):
        case 0 if len(values):
            values.pop(int(rng.integers(len(values))))
        case 1:
            del values[:]
        case _ if field.message_type is not None:
            added = values.add()
            if len(values) > 1 and rng.random() < 0.7:
                added.CopyFrom(pick(rng, values[:-1]))
        case _:
            values.append(_scalar(rng, field))


def _scalar(rng: Rng, field: Any) -> Any:
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return pick(rng, FLOATS)
    if field.type == field.TYPE_BYTES:
        return bytes(rng.integers(0, 256, int(rng.integers(20)), np.uint8))
    if field.type == field.TYPE_STRING:
        return pick(rng, WORDS)
    return pick(rng, (*NUMBERS, *range(30)))


CHANGES: tuple[Change, ...] = (
    order_of_nodes, double_node, drop_node, rename_everywhere, rename_once, shorten, operator, operator, domain,
    attribute_value, attribute_value, attribute_kind, attribute_count, dims, declared, declared, type_of_data, convert,
    convert, numbers, numbers, length, external, versions, interface, interface, functions, bodies, splice, insert,
    insert, insert, by_reflection, by_reflection, by_reflection,
)  # fmt: skip


def changed_model(rng: Rng, data: bytes, other: bytes) -> bytes:
    """A model with one to six changes."""
    model, donor = onnx.load_from_string(data), onnx.load_from_string(other)
    for _ in range(min(int(rng.geometric(0.55)), 6)):
        pick(rng, CHANGES)(rng, model, donor)
    made: bytes = model.SerializeToString()
    return made


def changed_bytes(rng: Rng, data: bytes, other: bytes = b"") -> bytes:
    """Bytes that are flipped, cut, inserted, repeated, exchanged."""
    made = bytearray(data)
    for _ in range(min(int(rng.geometric(0.4)), 20)):
        _change_bytes(rng, made, other or data)
    return bytes(made)


def _change_bytes(rng: Rng, made: bytearray, other: bytes) -> None:
    at, span = int(rng.integers(len(made) + 1)), int(rng.integers(1, 17))
    match int(rng.integers(7)):
        case 0 if at < len(made):
            made[at] ^= 1 << int(rng.integers(8))
        case 1 if at < len(made):
            made[at] = pick(rng, (0, 1, 127, 128, 255, int(rng.integers(256))))
        case 2:
            made[at : at + span] = b""
        case 3:
            made[at:at] = bytes(rng.integers(0, 256, span, np.uint8))
        case 4:
            made[at:at] = made[at : at + span] * int(rng.integers(1, 20))
        case 5:
            start = int(rng.integers(len(other) + 1))
            made[at : at + span] = other[start : start + span]
        case _ if rng.random() < 0.2:
            del made[at:]
