"""Graphs that contradict themselves: edges, names, operators, functions, bodies."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tests.builders import random
from tests.trust.cases import WEIGHTS, Stage, broken, each, either, proto_of, small_net

IMAGE = "float[N, 3, 8, 8]"
Change = Callable[[onnx.GraphProto], object]


def _rename_input(node: int, place: int, name: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[node].input[place] = name

    return change


def _rename_output(node: int, name: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[node].output[0] = name

    return change


def _without(field: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        del getattr(graph, field)[:]

    return change


def _without_initializer(graph: onnx.GraphProto) -> None:
    del graph.initializer[0]


def _again(field: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        getattr(graph, field).append(getattr(graph, field)[0])

    return change


def _extra_output(graph: onnx.GraphProto) -> None:
    graph.output.add(name="nowhere").type.tensor_type.elem_type = 1


def _operator(node: int, operator: str, domain: str = "") -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[node].op_type, graph.node[node].domain = operator, domain

    return change


def _attribute(node: int, name: str, **value: object) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        kept = [each for each in graph.node[node].attribute if each.name != name]
        del graph.node[node].attribute[:]
        graph.node[node].attribute.extend([*kept, onnx.AttributeProto(name=name, **value)])  # type: ignore[arg-type]

    return change


def _ints(values: list[int]) -> dict[str, object]:
    return {"type": onnx.AttributeProto.INTS, "ints": values}


def _int(value: int) -> dict[str, object]:
    return {"type": onnx.AttributeProto.INT, "i": value}


def _output_shape(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def _input_type(kind: int) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.elem_type = kind

    return change


def _input_extent(extent: int) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[2].dim_value = extent

    return change


def _input_kind(kind: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].ClearField("type")
        if kind == "sequence":
            graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1

    return change


CHANGES: dict[str, Change] = {
    "a cycle": _rename_input(0, 0, "r"),
    "a node that reads itself": _rename_input(1, 0, "r"),
    "an input from nowhere": _rename_input(1, 0, "nobody"),
    "two nodes with one output": _rename_output(2, "r"),
    "a node that gives the input's name": _rename_output(1, "x"),
    "a node that gives a weight's name": _rename_output(1, "conv_weight"),
    "an output nobody gives": _extra_output,
    "no outputs": _without("output"),
    "no nodes": _without("node"),
    "two inputs of one name": _again("input"),
    "two weights of one name": _again("initializer"),
    "a weight is missing": _without_initializer,
    "no name of the output": _rename_output(4, ""),
    "an unknown operator": _operator(1, "Frobnicate"),
    "no operator": _operator(1, ""),
    "an unknown domain": _operator(1, "Relu", "com.nobody"),
    "an unknown attribute": _attribute(0, "frobnication", **_int(1)),
    "an attribute of a wrong type": _attribute(0, "group", **_ints([1])),
    "an attribute of no type": _attribute(0, "group", i=1),
    "an attribute twice": lambda graph: graph.node[0].attribute.append(graph.node[0].attribute[0]),
    "too many inputs": lambda graph: graph.node[1].input.append("x"),
    "too few inputs": lambda graph: graph.node[4].ClearField("input"),
    "groups that do not divide": _attribute(0, "group", **_int(2)),
    "group 0": _attribute(0, "group", **_int(0)),
    "group -1": _attribute(0, "group", **_int(-1)),
    "stride 0": _attribute(0, "strides", **_ints([0, 0])),
    "negative pads": _attribute(0, "pads", **_ints([-9, -9, -9, -9])),
    "huge pads": _attribute(0, "pads", **_ints([2**40] * 4)),
    "strides of another rank": _attribute(0, "strides", **_ints([1, 1, 1])),
    "a kernel shape other than the weight's": _attribute(0, "kernel_shape", **_ints([5, 5])),
    "a kernel larger than the image": _attribute(0, "dilations", **_ints([30, 30])),
    "an input of whole numbers into a convolution": _input_type(6),
    "an input of text": _input_type(8),
    "an input of no element type": _input_type(0),
    "an input of an unknown element type": _input_type(999),
    "an input without a type": _input_kind("nothing"),
    "an input that is a sequence": _input_kind("sequence"),
    "an input of negative extent": _input_extent(-8),
    "an input of 2^40 rows": _input_extent(2**40),
}


QUESTIONABLE: dict[str, Change] = {
    "two outputs of one name": _again("output"),
    "an output of another shape": _output_shape,
}


@each(lambda name: either(f"graph: {name}"), QUESTIONABLE)
@each(lambda name: broken(f"graph: {name}", "m.onnx", "d.npz"), CHANGES)
def changed_graph(stage: Stage, change: Change) -> None:
    stage.put_works()
    model = small_net()
    change(model.graph)
    stage.put(model)


@broken("graph: an unknown domain that is imported", "com.nobody", "m.onnx")
def imported_domain(stage: Stage) -> None:
    stage.put_works()
    model = small_net()
    model.graph.node[1].domain = "com.nobody"
    model.opset_import.add(domain="com.nobody", version=1)
    stage.put(model)


def _calls(bodies: list[str]) -> onnx.ModelProto:
    head = f"net ({IMAGE} x) => ({IMAGE} y) {{ y = local.f0 (x) }}"
    calls = [
        f'<domain: "local", opset_import: ["" : 17, "local" : 1]>\nf{i} (a) => (b) {{ {body} }}'
        for i, body in enumerate(bodies)
    ]
    return proto_of("\n".join([head, *calls]), {})


def _fan_out(times: int, depth: int) -> list[str]:
    chain = [f"v{k + 1} = local.f{{next}} (v{k})" for k in range(times)]
    text = "v0 = Identity (a) " + " ".join(chain) + f" b = Identity (v{times})"
    return [text.replace("{next}", str(i + 1)) for i in range(depth)] + ["b = Relu (a)"]


@each(
    lambda name: broken(f"functions: {name}"),
    {
        "one that calls itself": ["b = local.f0 (a)"],
        "two that call each other": ["b = local.f1 (a)", "b = local.f0 (a)"],
        "three in a ring": ["b = local.f1 (a)", "b = local.f2 (a)", "b = local.f1 (a)"],
        "20 that call the next 8 times": _fan_out(8, 20),
        "60 that call the next twice": _fan_out(2, 60),
        "300 that call the next once": _fan_out(1, 300),
        "a call of one that is not there": ["b = local.f7 (a)"],
        "an input from nowhere": ["b = Add (a, nobody)"],
        "an output from nowhere": ["c = Relu (a)"],
    },
)
def functions(stage: Stage, bodies: list[str]) -> None:
    stage.put_works()
    stage.put(_calls(bodies))


@broken("functions: a bomb in a branch")
def bomb_in_a_branch(stage: Stage) -> None:
    stage.put_works()
    model = _calls(_fan_out(8, 20))
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    del inner.input[:]
    inner.name = "branch"
    inner.output[0].name = inner.node[0].output[0] = "z"
    node = onnx.NodeProto(op_type="If", input=["chosen"], output=["y"])
    for name in ("then_branch", "else_branch"):
        node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
    model.graph.node[0].CopyFrom(node)
    model.graph.initializer.append(onnx.TensorProto(name="chosen", data_type=9, int32_data=[1]))
    stage.put(model)


@broken("functions: the same one twice")
def function_twice(stage: Stage) -> None:
    stage.put_works()
    model = _calls(["b = Relu (a)"])
    model.functions.append(model.functions[0])
    model.functions[1].node[0].op_type = "Neg"
    stage.put(model)


BRANCH = f"""net ({IMAGE} x) => (float[N, 8, 6, 6] y) {{
    y = If (chosen) <
        then_branch = one () => (float[N, 8, 6, 6] p) {{ p = Conv (x, conv_weight) }},
        else_branch = two () => (float[N, 8, 6, 6] q) {{ q = Conv (x, conv_weight) }}
    >
}}"""


def _branch(graph: onnx.GraphProto, index: int = 0) -> onnx.GraphProto:
    inner: onnx.GraphProto = graph.node[0].attribute[index].g
    return inner


def _branch_input(graph: onnx.GraphProto) -> None:
    _branch(graph).node[0].input[0] = "nobody"


@each(
    lambda name: broken(f"branches: {name}"),
    {
        "an input from nowhere": _branch_input,
        "one is missing": lambda graph: graph.node[0].attribute.pop(),
        "a different number of outputs": lambda graph: graph.node[0].output.append("more"),
        "an unknown operator": lambda graph: setattr(_branch(graph).node[0], "op_type", "Frobnicate"),
        "no output": lambda graph: _branch(graph).ClearField("output"),
        "a weight of the wrong size": lambda graph: _branch(graph).initializer.append(
            onnx.TensorProto(name="inner", data_type=1, dims=[1000], raw_data=bytes(8))
        ),
    },
)
def branches(stage: Stage, change: Change) -> None:
    stage.put_works()
    weights = {"conv_weight": WEIGHTS["conv_weight"], "chosen": random((), 1) > -9}
    model = proto_of(BRANCH, weights)
    change(model.graph)
    stage.put(model)


@either("crash: onnxruntime up to 1.31 needs a bias that may be left out", "onnxruntime crashes on the model")
def _crash(stage: Stage) -> None:
    """The crash that happens with every version is that of half a library, in `broken_usage`."""
    net = "net (float[N, 4, 32] x) => (float[N, 4, 32] y) { y = com.microsoft.Attention <num_heads = 4> (x, w) }"
    model = proto_of(net, {"w": random((32, 96))})
    model.opset_import.add(domain="com.microsoft", version=1)
    stage.put_odd(model)
