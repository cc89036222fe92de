"""Layers as they are seldom written: every kind of convolution and product, types other than float, recurrent cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnxruntime import InferenceSession, SessionOptions

from tests.builders import random
from tests.trust.cases import NET, WEIGHTS, Arrays, Stage, as_inputs, broken, each, either, odd, proto_of, small_net

PROMISED = 26  # by onnxruntime 1.27, the oldest that is supported
NEWEST = onnx.defs.onnx_opset_version()

Layer = tuple[str, Arrays]


def conv(line: str, shape: tuple[int, ...], weight: tuple[int, ...], **more: tuple[int, ...]) -> Layer:
    """One node in a graph of one image in and one out."""
    extents = ", ".join(str(n) for n in shape)
    text = f"net (float[N, {extents}] x) => (float y) {{ h = {line}  y = Relu (h) }}"
    return text, {"w": random(weight, 1), **{name: random(each_shape, 2) for name, each_shape in more.items()}}


LAYERS: dict[str, Layer] = {
    "convolution in one dimension": conv("Conv <pads = [1, 1]> (x, w)", (3, 20), (4, 3, 3)),
    "convolution in three dimensions": conv("Conv (x, w, b)", (2, 5, 6, 7), (4, 2, 3, 3, 3), b=(4,)),
    "convolution of 1x1 images": conv("Conv (x, w)", (6, 1, 1), (4, 6, 1, 1)),
    "convolution with a kernel as large as the image": conv("Conv (x, w)", (3, 8, 8), (4, 3, 8, 8)),
    "convolution to one channel": conv("Conv (x, w)", (3, 8, 8), (1, 3, 3, 3)),
    "convolution, depthwise": conv("Conv <group = 6> (x, w, b)", (6, 8, 8), (6, 1, 3, 3), b=(6,)),
    "convolution, depthwise with two outputs each": conv("Conv <group = 3> (x, w)", (3, 8, 8), (6, 1, 3, 3)),
    "convolution, grouped": conv("Conv <group = 2> (x, w)", (8, 8, 8), (6, 4, 3, 3)),
    "convolution, dilated": conv("Conv <dilations = [2, 3]> (x, w)", (3, 9, 9), (4, 3, 3, 3)),
    "convolution, strided": conv("Conv <strides = [2, 3]> (x, w)", (3, 9, 9), (4, 3, 3, 3)),
    "convolution, uneven pads": conv("Conv <pads = [0, 2, 1, 0]> (x, w)", (3, 8, 8), (4, 3, 3, 3)),
    "convolution, SAME_UPPER": conv('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', (3, 9, 9), (4, 3, 3, 3)),
    "convolution, SAME_LOWER": conv('Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)', (3, 9, 9), (4, 3, 3, 3)),
    "convolution, VALID": conv('Conv <auto_pad = "VALID"> (x, w)', (3, 9, 9), (4, 3, 3, 3)),
    "transposed convolution": conv("ConvTranspose <strides = [2, 2]> (x, w)", (4, 5, 5), (4, 3, 2, 2)),
    "transposed convolution with a bias": conv("ConvTranspose (x, w, b)", (4, 5, 5), (4, 3, 3, 3), b=(3,)),
    "transposed convolution, grouped with a bias": conv(
        "ConvTranspose <group = 2, strides = [2, 2]> (x, w, b)", (4, 5, 5), (4, 3, 2, 2), b=(6,)
    ),
    "transposed convolution in one dimension": conv(
        "ConvTranspose <output_padding = [1], strides = [2]> (x, w)", (4, 9), (4, 3, 3)
    ),
    "Gemm with alpha and beta": conv("Gemm <alpha = 0.5, beta = 2.0> (x, w, c)", (9,), (9, 5), c=(5,)),
    "Gemm with beta 0": conv("Gemm <beta = 0.0> (x, w, c)", (9,), (9, 5), c=(5,)),
    "Gemm with a single number": conv("Gemm (x, w, c)", (9,), (9, 5), c=()),
    "Gemm with a bias of one element": conv("Gemm (x, w, c)", (9,), (9, 5), c=(1,)),
    "Gemm with a bias of a row": conv("Gemm (x, w, c)", (9,), (9, 5), c=(1, 5)),
    "Gemm with a bias of a column": conv("Gemm (x, w, c)", (9,), (9, 5), c=(1, 1)),
    "Gemm without a bias": conv("Gemm (x, w)", (9,), (9, 5)),
    "Gemm with its weight transposed": conv("Gemm <transB = 1> (x, w, c)", (9,), (5, 9), c=(5,)),
    "product of one feature": conv("MatMul (x, w)", (9,), (9, 1)),
    "product with a vector": conv("MatMul (x, w)", (4, 9), (9,)),
    "product in batches": conv("MatMul (x, w)", (3, 4, 9), (3, 9, 5)),
    "product in batches that are broadcast": conv("MatMul (x, w)", (1, 4, 9), (3, 9, 5)),
    "product with the weight on the left": conv("MatMul (w, x)", (9, 4), (5, 9)),
    "product of five dimensions": conv("MatMul (x, w)", (2, 2, 3, 9), (9, 5)),
    "product with a weight of one batch": conv("MatMul (x, w)", (4, 9), (1, 9, 5)),
}


@each(lambda name: odd(f"layer: {name}"), LAYERS)
def layer(stage: Stage, given: Layer) -> None:
    stage.put_text(*given)


BESIDE = ("transposed", "grouped", "a single number", "one element", "a column", "batch", "left", "vector")


@each(
    lambda name: odd(f"layer beside others: {name}"),
    {name: given for name, given in LAYERS.items() if any(word in name for word in BESIDE)},
)
def beside(stage: Stage, given: Layer) -> None:
    text, arrays = given
    text = text.replace("(float y) {", "(float y, float z) { f = Flatten (x)  u = MatMul (f, m)  z = Relu (u) ")
    model = proto_of(text, arrays)
    extents = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stage.put_text(text, {**arrays, "m": random((int(np.prod(extents)), 4), 9)})


@odd("layer: Gemm with its input transposed")
def transposed_input(stage: Stage) -> None:
    text = "net (float[9, 4] x) => (float[4, 5] y) { h = Gemm <transA = 1> (x, w, c)  y = Relu (h) }"
    stage.put_text(text, {"w": random((9, 5)), "c": random((4, 5), 2)})


@odd("layer: product of two inputs")
def two_inputs(stage: Stage) -> None:
    stage.put_text("net (float[N, 4, 9] x, float[N, 9, 5] z) => (float[N, 4, 5] y) { y = MatMul (x, z) }", {})


@odd("layer: convolution whose weight is an input")
def weight_is_input(stage: Stage) -> None:
    stage.put_text("net (float[N, 3, 8, 8] x, float[4, 3, 3, 3] z) => (float[N, 4, 6, 6] y) { y = Conv (x, z) }", {})


@odd("layer: convolution whose weight is computed")
def weight_is_computed(stage: Stage) -> None:
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { w = Mul (v, two)  y = Conv (x, w) }"
    stage.put_text(text, {"v": random((4, 3, 3, 3)), "two": np.float32(2)})


def net_of(version: int) -> onnx.ModelProto:
    """The net as exporters of that time wrote it: up to IR 3, weights are inputs as well."""
    return as_inputs(small_net(version, 3)) if version < 9 else small_net(version, 8 if version < 19 else 10)


def _runs(version: int) -> bool:
    options = SessionOptions()
    options.log_severity_level = 4
    try:
        InferenceSession(net_of(version).SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


RUN = [version for version in range(7, NEWEST + 1) if version <= PROMISED or _runs(version)]
"""What has to be quantized: whatever onnxruntime runs. The others have to be refused."""


@each(lambda name: odd(f"opset: {name}"), {str(version): version for version in RUN})
@each(
    lambda name: broken(f"opset: {name}", "older opset"),
    {str(version): version for version in range(7, NEWEST + 1) if version not in RUN},
)
def opset(stage: Stage, version: int) -> None:
    stage.put_odd(net_of(version))


@each(
    lambda name: odd(f"opset: {name}, weights of 4 bits", floor_db=3),
    {str(version): version for version in (7, 11, 13, 21, RUN[-1])},
)
def opset_short(stage: Stage, version: int) -> None:
    opset(stage, version)
    stage.options = ["--bits", "4", "--weights", "gptq"]


@each(lambda name: either(f"opset: {name}"), {str(version): version for version in (1, 2, 3, 4, 5, 6)})
def ancient(stage: Stage, version: int) -> None:
    """Exporters of that time wrote other attributes; a convolution and a Relu are the same."""
    text = "net (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) { a = Conv (x, conv_weight)  y = Relu (a) }"
    stage.put_odd(as_inputs(proto_of(text, {"conv_weight": WEIGHTS["conv_weight"]}, version, 3)))


def _typed(name: str, dtype: Any) -> Layer:
    return NET.replace("float[", f"{name}["), {key: array.astype(dtype) for key, array in WEIGHTS.items()}


@odd("type: float16")
def half(stage: Stage) -> None:
    stage.put_text(*_typed("float16", np.float16))


@odd("type: double")
def double(stage: Stage) -> None:
    text = "net (double[N, 9] x) => (double[N, 5] y) { h = MatMul (x, w)  y = Relu (h) }"
    stage.put_text(text, {"w": random((9, 5)).astype(np.float64)})


@either("type: bfloat16", "m.onnx", "bfloat16")
def brain(stage: Stage) -> None:
    stage.put_text(*_typed("bfloat16", ml_dtypes.bfloat16))


MIXED = """net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    h = Cast <to = 10> (x)
    a = Conv (h, conv_weight, conv_bias)
    r = Relu (a)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    s = Cast <to = 1> (f)
    y = Gemm <transB = 1> (s, gemm_weight, gemm_bias)
}"""


@odd("type: float16 inside, float outside")
def mixed(stage: Stage) -> None:
    halves = {key: array.astype(np.float16 if "conv" in key else np.float32) for key, array in WEIGHTS.items()}
    stage.put_text(MIXED, halves)


@odd("type: float inside, float16 outside")
def mixed_outside(stage: Stage) -> None:
    text = """net (float16[N, 9] x) => (float16[N, 5] y) {
        h = Cast <to = 1> (x)
        m = MatMul (h, w)
        r = Relu (m)
        y = Cast <to = 10> (r)
    }"""
    stage.put_text(text, {"w": random((9, 5))})


@odd("type: weights of float16 behind a Cast")
def cast_weights(stage: Stage) -> None:
    text = "net (float[N, 9] x) => (float[N, 5] y) { w = Cast <to = 1> (h)  m = MatMul (x, w)  y = Relu (m) }"
    stage.put_text(text, {"h": random((9, 5)).astype(np.float16)})


@each(
    lambda name: odd(f"type: images of {name}"),
    {"uint8": "uint8", "int32": "int32", "bool": "bool", "double": "double", "float16": "float16"},
)
def pixels(stage: Stage, name: str) -> None:
    text = f"net ({name}[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {{ f = Cast <to = 1> (x)  y = Conv (f, w) }}"
    stage.put_text(text, {"w": random((4, 3, 3, 3))})


CELLS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "LSTM": ("h, s, c = LSTM <hidden_size = 4> (x, w, r, b)", {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32)}),
    "GRU": ("h, s = GRU <hidden_size = 4> (x, w, r, b)", {"w": (1, 12, 3), "r": (1, 12, 4), "b": (1, 24)}),
    "RNN": ("h, s = RNN <hidden_size = 4> (x, w, r, b)", {"w": (1, 4, 3), "r": (1, 4, 4), "b": (1, 8)}),
    "LSTM without a bias": ("h = LSTM <hidden_size = 4> (x, w, r)", {"w": (1, 16, 3), "r": (1, 16, 4)}),
    "LSTM in both directions": (
        'h = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b)',
        {"w": (2, 16, 3), "r": (2, 16, 4), "b": (2, 32)},
    ),
    "GRU, linear before reset": (
        "h = GRU <hidden_size = 4, linear_before_reset = 1> (x, w, r, b)",
        {"w": (1, 12, 3), "r": (1, 12, 4), "b": (1, 24)},
    ),
}


@each(lambda name: odd(f"recurrent: {name}"), CELLS)
def recurrent(stage: Stage, given: tuple[str, dict[str, tuple[int, ...]]]) -> None:
    line, shapes = given
    text = f"net (float[6, 1, 3] x) => (float y) {{ {line}  z = Squeeze (h, axis)  y = MatMul (z, o) }}"
    weights: dict[str, Any] = {name: random(shape, 1) for name, shape in shapes.items()}
    directions = shapes["w"][0]
    if directions == 2:
        text = text.replace("z = Squeeze (h, axis)", "z = Identity (h)")
    else:
        weights["axis"] = np.array([1])
    stage.put_text(text, {**weights, "o": random((4, 5), 3)})


WAYS: dict[str, Callable[[], list[str]]] = {
    "weights alone": lambda: ["--weight-only"],
    "weights alone in blocks": lambda: ["--weight-only", "--granularity", "block-16", "--bits", "4"],
    "dynamic": lambda: ["--activations", "dynamic"],
    "native": lambda: ["--target", "native"],
    "3 bits": lambda: ["--bits", "3", "--weights", "gpfq"],
    "per tensor": lambda: ["--granularity", "per-tensor"],
}


@each(lambda name: odd(f"way: {name}", floor_db=5), WAYS)
def ways(stage: Stage, options: Callable[[], list[str]]) -> None:
    stage.put_works()
    stage.options = options()
