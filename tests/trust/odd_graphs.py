"""Graphs as exporters and people leave them: bodies, functions, constants, shared and unused parts, shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.builders import random
from tests.trust.broken_external import external
from tests.trust.cases import (
    NET,
    WEIGHTS,
    Arrays,
    Stage,
    as_inputs,
    broken,
    each,
    either,
    odd,
    proto_of,
    small_net,
    tensor_named,
)

W = {"w": random((8, 8), 1), "v": random((8, 8), 2)}
TURN = {"w": np.linalg.qr(random((8, 8), 1))[0].astype(np.float32)}  # else products amplify any error, or forget it
C = {"k": random((4, 3, 3, 3), 1), "l": random((4, 3, 3, 3), 2)}
ZERO = {"zero": np.float32(0)}
ROW = "float[N, 8]"

TEXTS: dict[str, tuple[str, Arrays]] = {
    "a shared weight": (f"net ({ROW} x) => ({ROW} y) {{ a = MatMul (x, w)  r = Relu (a)  y = MatMul (r, w) }}", W),
    "a weight shared by a product and a sum": (
        "net (float[8, 8] x) => (float[8, 8] y) { a = MatMul (x, w)  r = Add (a, w)  y = MatMul (r, v) }", W),
    "a weight that is an output": (
        f"net ({ROW} x) => ({ROW} y, float[8, 8] w) {{ y = MatMul (x, w) }}", W),
    "an output that is an input": (f"net ({ROW} x) => ({ROW} y, {ROW} x) {{ y = MatMul (x, w) }}", W),
    "an output twice": (f"net ({ROW} x) => ({ROW} y, {ROW} z) {{ y = MatMul (x, w)  z = Identity (y) }}", W),
    "an inner value that is an output": (
        f"net ({ROW} x) => ({ROW} y, {ROW} a, {ROW} r) {{ a = MatMul (x, w)  r = Relu (a)  y = MatMul (r, v) }}", W),
    "five outputs": (
        f"net ({ROW} x) => ({ROW} a, {ROW} b, {ROW} c, {ROW} d, {ROW} e) "
        "{ a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, v)  d = Sigmoid (c)  e = Add (b, d) }", W),
    "an input nobody reads": (f"net ({ROW} x, {ROW} z) => ({ROW} y) {{ y = MatMul (x, w) }}", W),
    "a weight nobody reads": (f"net ({ROW} x) => ({ROW} y) {{ y = MatMul (x, w) }}", W),
    "a value nobody reads": (f"net ({ROW} x) => ({ROW} y) {{ a = MatMul (x, v)  y = MatMul (x, w) }}", W),
    "two inputs": (
        f"net ({ROW} x, {ROW} z) => ({ROW} y) {{ a = MatMul (x, w)  b = MatMul (z, v)  y = Add (a, b) }}", W),
    "two inputs that join": (f"net ({ROW} x, {ROW} z) => ({ROW} y) {{ a = Add (x, z)  y = MatMul (a, w) }}", W),
    "empty optional inputs": (
        f'net ({ROW} x) => ({ROW} y) {{ a = MatMul (x, w)  r = Clip (a, "", top)  y = MatMul (r, v) }}',
        {**W, "top": np.float32(2)}),
    "Identity everywhere": (
        f"net ({ROW} x) => ({ROW} y) {{ i = Identity (x)  j = Identity (w)  a = MatMul (i, j)  y = Identity (a) }}", W),
    "nothing but Identity": (f"net ({ROW} x) => ({ROW} y) {{ y = Identity (x) }}", {}),
    "no weights at all": (f"net ({ROW} x) => ({ROW} y) {{ a = Relu (x)  y = Softmax (a) }}", {}),
    "no layer, but weights": (f"net ({ROW} x) => ({ROW} y) {{ y = Mul (x, s) }}", {"s": random((8,))}),
    "only an embedding": (
        "net (int64[N, 5] x) => (float[N, 5, 8] y) { y = Gather (t, x) }", {"t": random((9, 8))}),
    "the same input on both sides": (
        "net (float[N, 8, 8] x) => (float[N, 8, 8] y) { a = MatMul (x, x)  y = MatMul (a, w) }", W),
    "Dropout and BatchNormalization": (
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
            a = Conv (x, k)  b = BatchNormalization (a, one, one, one, one)
            d, m = Dropout (b, ratio)  y = Relu (d) }""",
        {**C, "one": np.ones(4, np.float32), "ratio": np.float32(0.5)}),
    "a BatchNormalization without a convolution": (
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
            b = BatchNormalization (x, one, one, one, one)  y = Conv (b, k) }""",
        {**C, "one": np.ones(3, np.float32)}),
    "Resize": (
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 14, 14] y) {
            u = Resize <mode = "linear"> (x, "", scales)  y = Conv (u, k) }""",
        {**C, "scales": np.array([1, 1, 2, 2], np.float32)}),
    "Pad by reflection": (
        """net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            u = Pad <mode = "reflect"> (x, pads)  y = Conv (u, k) }""",
        {**C, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Slice with steps": (
        """net (float[N, 3, 8, 8] x) => (float y) {
            a = Conv (x, k)  s = Slice (a, start, end, axis, step)  y = Conv (s, p) }""",
        {**C, "p": random((2, 4, 1, 1)), "start": np.array([5]), "end": np.array([-7]), "axis": np.array([2]),
         "step": np.array([-2])}),
    "TopK": (
        f"net ({ROW} x) => (float[N, 2] y, int64[N, 2] i) {{ a = MatMul (x, w)  y, i = TopK (a, two) }}",
        {**W, "two": np.array([2])}),
    "ArgMax": (f"net ({ROW} x) => (int64[N, 1] y) {{ a = MatMul (x, w)  y = ArgMax <axis = 1> (a) }}", W),
    "Shape, Gather and Reshape": (
        """net (float[N, 3, 8, 8] x) => (float y) {
            a = Conv (x, k)  s = Shape (a)  n = Gather (s, first)  m = Unsqueeze (n, first_axis)
            t = Concat <axis = 0> (m, minus)  f = Reshape (a, t)  y = MatMul (f, o) }""",
        {**C, "first": np.array(0), "first_axis": np.array([0]), "minus": np.array([-1]), "o": random((144, 5))}),
    "a wide Concat": (
        "net (float[N, 3, 8, 8] x) => (float y) {\n" + "\n".join(f"a{i} = Conv (x, k)" for i in range(120))
        + f"\nc = Concat <axis = 1> ({', '.join(f'a{i}' for i in range(120))})  y = Conv (c, o) }}",
        {**C, "o": random((2, 480, 1, 1), 1, 0.05)}),
    "a Concat of an input with itself": (
        "net (float[N, 3, 8, 8] x) => (float y) { c = Concat <axis = 1> (x, x)  y = Conv (c, o) }",
        {"o": random((2, 6, 1, 1))}),
    "Split and join": (
        "net (float[N, 8] x) => (float[N, 8] y) "
        "{ a = MatMul (x, w)  l, r = Split <axis = 1> (a, half)  c = Concat <axis = 1> (r, l)  y = MatMul (c, v) }",
        {**W, "half": np.array([4, 4])}),
    "300 readers of a value": (
        f"net ({ROW} x) => ({ROW} y) {{ a = MatMul (x, w)\n" + "\n".join(f"r{i} = Relu (a)" for i in range(300))
        + f"\ns = Sum ({', '.join(f'r{i}' for i in range(300))})  y = MatMul (s, v) }}", W),
    "300 products of a value": (
        f"net ({ROW} x) => ({ROW} y) {{\n" + "\n".join(f"r{i} = MatMul (x, w)" for i in range(300))
        + f"\ny = Sum ({', '.join(f'r{i}' for i in range(300))}) }}", W),
    "a chain of 3000 nodes": (
        f"net ({ROW} x) => ({ROW} y) {{ c0 = MatMul (x, w)\n"
        + "\n".join(f"c{i + 1} = {('Relu', 'Identity', 'Abs')[i % 3]} (c{i})" for i in range(3000))
        + "\ny = MatMul (c3000, v) }", W),
    "a chain of 150 products": (
        f"net ({ROW} x) => ({ROW} y) {{ c0 = MatMul (x, w)\n"
        + "\n".join(f"t{i} = Tanh (c{i})  c{i + 1} = MatMul (t{i}, w)" for i in range(150))
        + "\ny = Tanh (c150) }", TURN),
    "quantization that is there already": (
        f"""net ({ROW} x) => ({ROW} y) {{
            q = QuantizeLinear (x, scale, point)  d = DequantizeLinear (q, scale, point)
            a = MatMul (d, w)  r = Relu (a)  y = MatMul (r, v) }}""",
        {**W, "scale": np.float32(0.03), "point": np.uint8(128)}),
    "codes that are decoded": (
        f"net ({ROW} x) => ({ROW} y) {{ d = DequantizeLinear (codes, scale)  a = MatMul (x, d)  y = MatMul (a, v) }}",
        {**W, "codes": np.arange(64, dtype=np.int8).reshape(8, 8), "scale": np.float32(0.01)}),
    "integer products that are there already": (
        f"""net ({ROW} x) => ({ROW} y) {{
            q, s, p = DynamicQuantizeLinear (x)  i = MatMulInteger (q, codes, p)  f = Cast <to = 1> (i)
            a = Mul (f, scale)  y = MatMul (a, v) }}""",
        {**W, "codes": np.arange(64, dtype=np.int8).reshape(8, 8), "scale": np.float32(0.001)}),
    "random numbers that are multiplied by 0": (
        f"""net ({ROW} x) => ({ROW} y) {{
            n = RandomNormalLike (x)  z = Mul (n, zero)  a = Add (x, z)  y = MatMul (a, w) }}""", {**W, **ZERO}),
    "text beside numbers": (
        f"net ({ROW} x) => ({ROW} y, string[1] s) {{ y = MatMul (x, w)  s = Identity (words) }}",
        {**W, "words": np.array(["hello"], object)}),
    "a sequence inside": (
        f"""net ({ROW} x) => ({ROW} y) {{
            a = MatMul (x, w)  s = SequenceConstruct (a, a)  b = SequenceAt (s, first)  y = MatMul (b, v) }}""",
        {**W, "first": np.array(0)}),
}  # fmt: skip


@each(lambda name: odd(f"graph: {name}", floor_db=8 if "chain" in name else 15), TEXTS)
def text(stage: Stage, given: tuple[str, Arrays]) -> None:
    stage.put_text(*given)
    if given[1] is TURN:  # below the default floor, and repairing so many layers takes longer than a case may
        stage.options.append("--accept-poor")


SHAPES: dict[str, str] = {
    "batch of 1": "1, 8",
    "batch of 3": "3, 8",
    "batch of 200": "200, 8",
    "no batch axis": "8",
    "free middle axis": "N, M, 8",
    "all axes free": "N, M, K, 8",
    "one axis more": "1, 1, 1, 8",
}


@each(lambda name: odd(f"shape: {name}"), SHAPES)
def shape(stage: Stage, extents: str) -> None:
    text = f"net (float[{extents}] x) => (float y) {{ a = MatMul (x, w)  r = Relu (a)  y = MatMul (r, v) }}"
    stage.put_text(text, W)


@either("shape: unknown rank")
def unknown_rank(stage: Stage) -> None:
    model = proto_of(f"net ({ROW} x) => (float y) {{ a = MatMul (x, w)  y = Relu (a) }}", W)
    stage.put_odd(model)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    stage.put(model)


@odd("shape: an input of rank 0 beside")
def rank_zero(stage: Stage) -> None:
    stage.put_text(f"net ({ROW} x, float s) => ({ROW} y) {{ a = Mul (x, s)  y = MatMul (a, w) }}", W)


@odd("shape: everything of rank 0")
def only_rank_zero(stage: Stage) -> None:
    text = "net (float s) => (float y) { a = Reshape (s, one)  b = MatMul (a, w)  y = Reshape (b, none) }"
    model = proto_of(text, {"one": np.array([1, 1]), "w": random((1, 1), 1, 2.0), "none": np.array([], np.int64)})
    stage.put_odd(model)


@odd("shape: images of any size")
def any_size(stage: Stage) -> None:
    stage.put_text(NET.replace("N, 3, 8, 8", "N, 3, H, W"), WEIGHTS)


@either("shape: declared nowhere")
def undeclared(stage: Stage) -> None:
    model = small_net()
    stage.put_odd(model)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    stage.put(model)


@each(
    lambda name: odd(f"weights as inputs: {name}"),
    {"IR 3, opset 7": (7, 3), "IR 3, opset 8": (8, 3), "IR 4, opset 9": (9, 4), "IR 9, opset 17": (17, 9)},
)
def weights_as_inputs(stage: Stage, versions: tuple[int, int]) -> None:
    stage.put_odd(as_inputs(small_net(*versions)))


@odd("weights: constants as nodes")
def constants(stage: Stage) -> None:
    model = small_net()
    for tensor in list(model.graph.initializer):
        node = onnx.NodeProto(op_type="Constant", output=[tensor.name])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, node)
    stage.put_odd(model)


@each(lambda name: odd(f"weights: {name}"), {"a sparse kernel": "conv_weight", "a sparse matrix": "gemm_weight"})
def sparse(stage: Stage, name: str) -> None:
    model = small_net()
    tensor = tensor_named(model, name)
    values = onnx.numpy_helper.to_array(tensor).reshape(-1)
    places = np.arange(0, values.size, 3)
    model.graph.initializer.remove(tensor)
    made = model.graph.sparse_initializer.add(dims=tensor.dims)
    made.values.CopyFrom(onnx.numpy_helper.from_array(values[places], name))
    made.indices.CopyFrom(onnx.numpy_helper.from_array(places))
    stage.put_odd(model)


@odd("weights: stored as lists of floats")
def float_data(stage: Stage) -> None:
    model = small_net()
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).reshape(-1)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values.tolist())
    stage.put_odd(model)


def _external(stage: Stage, where: Callable[[int, str], tuple[str, int]]) -> None:
    model = small_net()
    stage.put_odd(model)
    for index, tensor in enumerate(model.graph.initializer):
        data = tensor.raw_data
        location, offset = where(index, tensor.name)
        path = stage.inputs / location
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before.ljust(offset, b"\0") + data)
        external(tensor, {"location": location, "offset": str(offset), "length": str(len(data))})
    stage.put(model)


@each(
    lambda name: odd(f"external data: {name}"),
    {
        "in one file": lambda index, name: ("m.onnx.data", index * 4096),
        "in several files": lambda index, name: (f"{name}.bin", 0),
        "in a subfolder": lambda index, name: (f"weights/{name}.bin", 64),
        "in files of odd names": lambda index, name: (f"größe {index} (1).bin", 0),
        "in a path with a dot": lambda index, name: (f"./{name}.bin", 0),
    },
)
def external_data(stage: Stage, where: Callable[[int, str], tuple[str, int]]) -> None:
    _external(stage, where)


@either("external data: behind a link of the model", "m.onnx", "conv_weight")
def linked_model(stage: Stage) -> None:
    _external(stage, lambda index, name: (f"{name}.bin", 0))
    for path in list(stage.inputs.iterdir()):
        if path.suffix != ".npz":
            path.rename(stage.root / "elsewhere" / path.name)
    stage.reference = stage.root / "elsewhere/m.onnx"
    stage.model.symlink_to("../elsewhere/m.onnx")


@odd("external data: the model named from its own folder")
def relative(stage: Stage) -> None:
    _external(stage, lambda index, name: (f"{name}.bin", 0))
    for path in list(stage.inputs.iterdir()):
        path.rename(stage.root / "cwd" / path.name)
    stage.reference = stage.root / "cwd/m.onnx"
    stage.model, stage.data = stage.reference.relative_to(stage.root / "cwd"), stage.root / "cwd/d.npz"


@odd("graph: nodes in reverse order")
def reverse(stage: Stage) -> None:
    """As a converter to float16 that many use leaves them; onnxruntime sorts."""
    stage.put_works()
    model = small_net()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    stage.put(model)


@odd("graph: no inputs, all is constant")
def _no_inputs(stage: Stage) -> None:
    _put_constant(stage)
    stage.options, stage.data = ["--random-data"], None


@broken("npz: no arrays for a model without inputs", "d.npz: the model takes no inputs")
def _no_arrays(stage: Stage) -> None:
    _put_constant(stage)


def _put_constant(stage: Stage) -> None:
    stage.put_text("net () => (float[8, 8] y) { a = MatMul (w, v)  y = Relu (a) }", W)
    stage.feeds = [{}]
