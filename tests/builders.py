"""Tiny models from ONNX text, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.passes.native_bodies import CENTER, CONV, LOOKUP, body, overload
from ptq.passes.native_products import Fields, pack_weight

Arrays = dict[str, NDArray[Any]]


def model_from_text(text: str, weights: Arrays, opset: int = 17) -> ir.Model:
    """A model from the textual form of a graph; the weights become initializers."""
    source = f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}'
    proto = onnx.parser.parse_model(source)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def random(shape: tuple[int, ...], seed: int = 0, scale: float = 0.3) -> NDArray[np.float32]:
    """Normal numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def conv_net() -> ir.Model:
    """Conv - BN - Relu - (residual) Conv - Add - Relu - MaxPool - Concat - Conv - pool - Gemm: most of the rules."""
    text = """
    net (float[N, 3, 16, 16] x) => (float[N, 5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        n = BatchNormalization (a, gamma, beta, mean, var)
        r = Relu (n)
        c = Conv <pads = [1, 1, 1, 1]> (r, w2)
        s = Add (c, r)
        t = Relu (s)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        q = Concat <axis = 1> (m, p)
        d = Conv (q, w3, b3)
        e = Clip (d, zero, six)
        g = GlobalAveragePool (e)
        f = Flatten (g)
        y = Gemm <transB = 1> (f, w4, b4)
    }"""
    weights: Arrays = {
        "w1": random((8, 3, 3, 3), 1),
        "b1": random((8,), 2),
        "w2": random((8, 8, 3, 3), 3, 0.1),
        "w3": random((12, 16, 1, 1), 4),
        "b3": random((12,), 5),
        "w4": random((5, 12), 6),
        "b4": random((5,), 7),
        "gamma": np.abs(random((8,), 8)) + 0.5,
        "beta": random((8,), 9),
        "mean": random((8,), 10),
        "var": np.abs(random((8,), 11)) + 0.5,
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    return model_from_text(text, {k: np.asarray(v, np.float32) for k, v in weights.items()})


def attention() -> ir.Model:
    """LayerNorm - three projections - attention - projection with bias - residual - MLP with Gelu by Erf."""
    text = """
    net (float[B, S, 16] x) => (float[B, S, 16] y) {
        n = LayerNormalization <axis = -1> (x, g1, b1)
        q = MatMul (n, wq)
        k = MatMul (n, wk)
        kt = Transpose <perm = [0, 2, 1]> (k)
        v = MatMul (n, wv)
        s = MatMul (q, kt)
        p = Softmax <axis = -1> (s)
        o = MatMul (p, v)
        u = MatMul (o, wo)
        ub = Add (u, bo)
        h = Add (x, ub)
        f = MatMul (h, wf)
        fb = Add (bf, f)
        e = Erf (fb)
        z = Mul (fb, e)
        y = MatMul (z, wz)
    }"""
    shapes = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16), "wf": (16, 32), "wz": (32, 16)}
    weights: Arrays = {name: random(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    weights |= {
        "g1": np.ones(16, np.float32),
        "b1": np.zeros(16, np.float32),
        "bo": random((16,), 8),
        "bf": random((32,), 9),
    }
    return model_from_text(text, weights)


def feeds(count: int, *shape: int, name: str = "x", seed: int = 5) -> list[Arrays]:
    """Random samples of shape [1, *shape]."""
    generator = np.random.default_rng(seed)
    return [{name: generator.standard_normal((1, *shape)).astype(np.float32)} for _ in range(count)]


def native_conv(layer: dict[str, Any], **changes: Any) -> tuple[bytes, NDArray[np.uint8]]:
    """One operator, its body, and an input."""
    rng = np.random.default_rng(layer["seed"])
    shape = layer["shape"]
    channels = shape[1] * layer["group"]
    arrays: dict[str, NDArray[Any]] = {
        "x_scale": np.float32(0.02),
        "x_zero_point": np.uint8(rng.integers(256)),
        "w": rng.integers(-128, 128, shape).astype(np.int8),
        "w_scale": (0.001 + 0.01 * rng.random(shape[0])).astype(np.float32),
        "y_scale": np.float32(0.02 * np.sqrt(np.prod(shape[1:]))),
        "y_zero_point": np.uint8(rng.integers(256)),
        "B": rng.integers(-3000, 3000, shape[0]).astype(np.int32),
    } | changes.pop("arrays", {})
    op_type = CENTER if layer.get("center") else CONV
    if op_type == CENTER:
        small = rng.integers(-128, 128, (*shape[:2], 1, 1)).astype(np.int8)
        arrays |= {
            "center": small, "center_scale": 4 * arrays["w_scale"], "center_B": arrays["B"][::-1].copy(),
            "fine_scale": 24 * arrays["y_scale"], "fine_zero": np.uint8(128),
            "coarse_scale": 24 * arrays["y_scale"], "coarse_zero": np.uint8(128),
        } | {key: value for key, value in arrays.items() if key.startswith("center")}  # fmt: skip
    elif not layer["bias"]:
        del arrays["B"]
    attributes = {key: layer[key] for key in ("group", "strides", "pads", "dilations")}
    if op_type == CENTER:
        reach = [rate * (size // 2) for rate, size in zip(layer["dilations"], shape[2:], strict=True)]
        attributes["center_pads"] = [pad - half for pad, half in zip(layer["pads"], reach * 2, strict=True)]
    attributes |= changes
    values = {
        name: ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name)) for name, array in arrays.items()
    }
    x = ir.Value(name="x", shape=ir.Shape(["N", "H", "W", channels]), type=ir.TensorType(ir.DataType.UINT8))
    node = ir.node(op_type, [x, *values.values()], attributes, domain="ai.ptq", name="conv7")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    node.outputs[0].shape = ir.Shape([None] * 4)
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=list(values.values()), opset_imports={"": 17, "ai.ptq": 1}
    )
    model = ir.Model(graph, ir_version=9, functions=[body(op_type, 17)])
    given_x = rng.integers(0, 256, (*layer["input"], channels)).astype(np.uint8)
    return ir.to_proto(model).SerializeToString(), given_x


def native_product(layer: dict[str, Any], **changes: Any) -> tuple[bytes, NDArray[Any], Arrays]:
    """One operator, its body, an input, and the weight and real input that it stands for."""
    rng = np.random.default_rng(layer["seed"])
    op_type, features, inputs, bits = (layer[key] for key in ("op_type", "N", "K", "bits"))
    block = layer["block_size"] or inputs
    blocks = -(-inputs // block)
    values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (features, inputs)).astype(np.int8)
    scale = (0.001 + 0.01 * rng.random((features, blocks))).astype(np.float32)
    weight = pack_weight(Fields.plain(values, bits), scale)
    table = weight.table if not layer["table"] else rng.integers(-128, 128, 1 << bits).astype(np.int8)
    floats = op_type == "DynamicMatMulNBits"
    arrays: dict[str, NDArray[Any]] = {} if floats else {"x_scale": np.float32(0.02), "x_zero": np.uint8(77)}
    arrays |= {"w": weight.codes, "w_scale": weight.scale, "table": table, "bias": random((features,), layer["seed"])}
    if op_type == "QLinearMatMulNBits":
        arrays |= {"y_scale": np.float32(0.05), "y_zero": np.uint8(rng.integers(256))}
    arrays |= changes.pop("arrays", {})
    attributes: dict[str, Any] = {"N": features, "K": inputs, "bits": bits, "block_size": layer["block_size"]}
    clipped = op_type != "QLinearMatMulNBits" and layer["clip"] is not None
    if clipped:
        attributes |= dict(zip(("min", "max"), layer["clip"], strict=True))
    constants = [ir.Value(name=k, const_value=ir.tensor(np.asarray(v), name=k)) for k, v in arrays.items()]
    kind = ir.DataType.FLOAT if floats else ir.DataType.UINT8
    x = ir.Value(name="x", shape=ir.Shape([None] * len(layer["rows"]) + [inputs]), type=ir.TensorType(kind))
    made = [
        ir.AttrFloat32(k, v) if isinstance(v, float) else ir.AttrInt64(k, v) for k, v in (attributes | changes).items()
    ]
    form = overload(blocks=blocks > 1, clipped=clipped)
    node = ir.Node("ai.ptq", op_type, [x, *constants], made, overload=form, name="product7")
    y, opset = node.outputs[0], 21 if blocks > 1 else 17
    y.name, y.shape = "y", ir.Shape([None] * len(layer["rows"]) + [features])
    y.type = ir.TensorType(ir.DataType.UINT8 if op_type == "QLinearMatMulNBits" else ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[node], initializers=constants, opset_imports={"": opset, "ai.ptq": 1})
    model = ir.Model(graph, ir_version=10, functions=[body(op_type, opset, blocks=blocks > 1, clipped=clipped)])
    shape = (*layer["rows"], inputs)
    given = random(shape, layer["seed"] + 1, 1.0) if floats else rng.integers(0, 256, shape).astype(np.uint8)
    real = given.astype(np.float64) if floats else 0.02 * (given.astype(np.float64) - 77)
    decoded = table[values.astype(np.int64) + (1 << (bits - 1))] * np.repeat(scale, block, 1)[:, :inputs].astype(float)
    return ir.to_proto(model).SerializeToString(), given, {"weight": decoded, "real": real, **arrays}


def native_lookup(table: NDArray[np.uint8]) -> bytes:
    """One operator and its body."""
    values = [ir.Value(name="table", const_value=ir.tensor(table, name="table"))]
    x = ir.Value(name="x", shape=ir.Shape(["N", None]), type=ir.TensorType(ir.DataType.UINT8))
    node = ir.node(LOOKUP, [x, *values], domain="ai.ptq", name="lookup7")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape([None, None])
    graph = ir.Graph([x], [y], nodes=[node], initializers=values, opset_imports={"": 17, "ai.ptq": 1})
    return ir.to_proto(ir.Model(graph, ir_version=9, functions=[body(LOOKUP, 17)])).SerializeToString()


SWIGLU_WIDTH = 64


def swiglu(gain: float, added: str = "x") -> ir.Model:
    """A root-mean-square normalisation and a gated pair of products, with a few wide channels before each of them."""
    text = f"""
    m (float[B, S, {SWIGLU_WIDTH}] x) => (float[B, S, {SWIGLU_WIDTH}] y) {{
        square = Mul (x, x)
        mean = ReduceMean <keepdims = 1> (square, last)
        some = Add (mean, tiny)
        root = Sqrt (some)
        plain = Div (x, root)
        n = Mul (scale, plain)
        g = MatMul (n, wg)
        u = MatMul (n, wu)
        ub = Add (u, bu)
        s = Sigmoid (g)
        silu = Mul (g, s)
        z = Mul (silu, ub)
        d = MatMul (z, wd)
        y = Add (d, {added})
    }}"""
    wide = np.ones(SWIGLU_WIDTH, np.float32)
    wide[[3, 17, 40]] = gain
    up = random((SWIGLU_WIDTH, 96), 1)
    up[:, [5, 60]] *= gain
    weights: dict[str, Any] = {
        "last": np.array([-1], np.int64), "tiny": np.float32(1e-6), "scale": wide,
        "wg": random((SWIGLU_WIDTH, 96), 2, 0.1), "wu": up, "bu": random((96,), 3), "wd": random((96, SWIGLU_WIDTH), 4),
    }  # fmt: skip
    return model_from_text(text, weights, 21)
