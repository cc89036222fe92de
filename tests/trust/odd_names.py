"""Names that are strange, missing, all alike, or the ones that the tool would have chosen."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tests.trust.cases import NET, WEIGHTS, Stage, each, odd, proto_of, small_net

VALUES = ("x", "a", "r", "g", "f", "y", *WEIGHTS)


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """The model with other names of values."""
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for part in (model.graph.input, model.graph.output, model.graph.initializer):
        for value in part:
            value.name = names.get(value.name, value.name)
    return model


STRANGE: dict[str, Callable[[str], str]] = {
    "spaces": lambda name: f"{name} of the model",
    "slashes": lambda name: f"/model/{name}/../{name}",
    "dots and colons": lambda name: f"model.0.{name}:0",
    "umlauts and Chinese": lambda name: f"Größe_模型_{name}",
    "emoji": lambda name: f"🙂{name}🙃",
    "5000 characters": lambda name: name * (5000 // len(name)),
    "quotes and backslashes": lambda name: f"\"{name}\\n'",
    "line breaks": lambda name: f"{name}\n\t{name}",
    "a NUL": lambda name: name if name == "x" else f"{name}\0{name}",
    "percent signs": lambda name: f"%s%d{{{name}}}{{0}}",
    "markdown and html": lambda name: f"|<b>{name}</b>|`",
    "numbers": lambda name: str(VALUES.index(name)),
    "terminal escapes": lambda name: f"\x1b[31m{name}",
    "names of operators": lambda name: f"Conv{VALUES.index(name) or ''}",
}


@each(lambda name: odd(f"names: {name}"), STRANGE)
def strange(stage: Stage, change: Callable[[str], str]) -> None:
    stage.put_odd(renamed(small_net(), {name: change(name) for name in VALUES}))


@each(
    lambda name: odd(f"names of nodes: {name}"),
    {
        "spaces and slashes": lambda index: f"/a b/{index}",
        "5000 characters": lambda index: "n" * 5000 + str(index),
        "those of values": lambda index: VALUES[index],
        "umlauts": lambda index: f"Knöten{index}",
        "some empty": lambda index: "" if index % 2 else f"n{index}",
        "those of the tool": lambda index: ("conv_weight_dq", "a_bias", "node_1", "x_q", "x_dq")[index],
    },
)
def node_names(stage: Stage, name: Callable[[int], str]) -> None:
    model = small_net()
    for index, node in enumerate(model.graph.node):
        node.name = name(index)
    stage.put_odd(model)


@odd("names of nodes: all alike")
def alike(stage: Stage) -> None:
    """Whether onnxruntime opens such a model depends on its version: it is compared with one without names."""
    stage.put_works()
    stage.reference = stage.root / "elsewhere/unnamed.onnx"
    stage.model.rename(stage.reference)
    model = small_net()
    for node in model.graph.node:
        node.name = "node"
    stage.put(model)


ENDINGS = (
    "_scale", "_zero_point", "_zero", "_quantized", "_q", "_dq", "_bias_quantized", "_bias_scale", "_bias_dq", "_float",
    "_decoded", "_bias", "_1", "_equal_weight", "_least",
)  # fmt: skip


@each(lambda name: odd(f"names: clash with {name}"), {ending: ending for ending in ENDINGS[:8]})
def clash(stage: Stage, ending: str) -> None:
    """Weights named as what would be made of the values, and the other way round."""
    names = {
        "conv_weight": f"x{ending}",
        "conv_bias": f"a{ending}",
        "gemm_weight": f"g{ending}",
        "gemm_bias": f"y{ending}",
    }
    stage.put_odd(renamed(small_net(), {**names, "r": f"x{ending}{ending}", "a": "a", "f": f"f{ending}"}))


@odd("names: clash with everything at once")
def clashes(stage: Stage) -> None:
    values = [name + ending for name in VALUES for ending in ENDINGS]
    text = NET.replace("y = Gemm", "last = Gemm").replace(
        "}",
        "\n".join(f"{new} = Identity ({old})" for old, new in zip(["last", *values], [*values, "y"], strict=True))
        + "}",
    )
    stage.put_text(text, WEIGHTS)


@odd("names: clash of inputs and outputs")
def clash_outside(stage: Stage) -> None:
    stage.put_odd(renamed(small_net(), {"x": "conv_weight_quantized", "y": "conv_weight_scale"}))


@odd("names: clash inside of a branch")
def clash_inside(stage: Stage) -> None:
    inner = " ".join(
        f"{new} = Relu ({old})"
        for old, new in (
            ("r", "r_q"),
            ("r_q", "r_dq"),
            ("r_dq", "conv_weight_dq"),
            ("conv_weight_dq", "gemm_weight_dq"),
        )
    )
    text = f"""net (float[N, 3, 8, 8] x) => (float[N, 5] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, conv_weight, conv_bias)
        r = Relu (a)
        t = ReduceMax <keepdims = 0> (r)
        c = Greater (t, zero)
        i = If (c) <
            then_branch = one () => (float[N, 8, 8, 8] gemm_weight_dq) {{ {inner} }},
            else_branch = two () => (float[N, 8, 8, 8] x_scale) {{ x_scale = Identity (r) }}
        >
        g = GlobalAveragePool (i)
        f = Flatten (g)
        y = Gemm <transB = 1> (f, gemm_weight, gemm_bias)
    }}"""
    zero = onnx.numpy_helper.to_array(onnx.TensorProto(data_type=1, float_data=[0.0]))
    stage.put_odd(proto_of(text, {**WEIGHTS, "zero": zero}))


@odd("names: a graph without a name")
def nameless(stage: Stage) -> None:
    model = small_net()
    model.graph.name = "\u200b"
    stage.put_odd(model)


@odd("names: a model file with spaces and umlauts")
def file_name(stage: Stage) -> None:
    stage.put_works()
    stage.model = stage.model.rename(stage.inputs / "größtes modell (1).onnx")
    stage.output = stage.root / "out/ergebnis, neu.onnx"


@odd("names: a model file without a suffix")
def no_suffix(stage: Stage) -> None:
    stage.put_works()
    stage.model = stage.model.rename(stage.inputs / "model")
    stage.output = stage.root / "out/quantized"


@odd("names: a model file behind a link")
def linked(stage: Stage) -> None:
    stage.put_works()
    stage.model = stage.model.rename(stage.root / "elsewhere/m.onnx")
    (stage.inputs / "m.onnx").symlink_to("../elsewhere/m.onnx")
    stage.model = stage.inputs / "m.onnx"
