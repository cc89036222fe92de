"""Convolutions that onnxruntime has fused or put into blocks are written out as they were, and become integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from ptq import quantize
from ptq.models.load import load_model
from ptq.passes import prepare
from ptq.passes.linear import constant
from tests.builders import feeds, model_from_text, random

ACTIVATIONS = {
    "none": "",
    "Relu": 'activation = "Relu"',
    "Tanh": 'activation = "Tanh"',
    "Sigmoid": 'activation = "Sigmoid"',
    "LeakyRelu": 'activation = "LeakyRelu", activation_params = [0.3]',
    "Clip": 'activation = "Clip", activation_params = [0.0, 0.6]',
    "HardSwish": 'activation = "HardSwish"',
    "HardSigmoid": 'activation = "HardSigmoid", activation_params = [0.25, 0.4]',
}
OPERANDS = {"plain": "a, w", "with a bias": "a, w, b", "with a sum": "a, w, b, a", "with a sum alone": "a, w, , a"}


def fused(activation: str, operands: str) -> ir.Model:
    text = f"""<ir_version: 9, opset_import: ["" : 13, "com.microsoft" : 1]>
    net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {{
        a = Conv (x, v)
        y = com.microsoft.FusedConv <pads = [1, 1, 1, 1], {activation}> ({operands})
    }}"""
    proto = onnx.parser.parse_model(text.replace(", >", ">"))
    weights = {"v": random((4, 3, 1, 1), 1), "w": random((4, 4, 3, 3), 2), "b": random((4,), 3)}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


@pytest.mark.parametrize("operands", OPERANDS.values(), ids=OPERANDS)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_written_out_they_compute_the_same(activation: str, operands: str) -> None:
    prepared, _ = prepare(fused(activation, operands), feeds(1, 3, 8, 8)[0])
    assert not [node for node in prepared.graph if node.domain]


MIXED = """net (float[N, 3, 16, 16] x) => (float[N, 10] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    b = Clip (a, zero, six)
    c = Conv <pads = [1, 1, 1, 1], group = 24> (b, w1, b1)
    d = Relu (c)
    e = Conv (d, w2, b2)
    f = Conv <pads = [1, 1, 1, 1]> (e, w3, b3)
    g = Add (f, e)
    h = Relu (g)
    i = GlobalAveragePool (h)
    j = Conv (i, w5)
    k = Relu (j)
    l = Conv (k, w6)
    m = Sigmoid (l)
    n = Mul (h, m)
    o = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (n)
    p = Conv <group = 2> (o, w7)
    q = Concat <axis = 1> (p, o)
    r = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (q, , twice)
    s = Conv (r, w4, b4)
    t = GlobalAveragePool (s)
    u = Flatten (t)
    y = Gemm <transB = 1> (u, wf)
}"""
BLOCKS = """net (float[N, 32, 8, 8] x) => (float[N, 32, 16, 16] y) {
    a = Conv (x, w0)
    b = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
    c = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)
    d = Conv (b, w0)
    e = Concat <axis = 1> (c, d)
    f = Tanh (e)
    g = Conv <group = 2> (f, w1)
    h = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (g, , twice)
    i = Conv (h, w2)
    y = Add (h, i)
}"""
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    MIXED: {"w0": (24, 3, 3, 3), "b0": (24,), "w1": (24, 1, 3, 3), "b1": (24,), "w2": (40, 24, 1, 1), "b2": (40,),
            "w3": (40, 40, 3, 3), "b3": (40,), "w5": (8, 40, 1, 1), "w6": (40, 8, 1, 1), "w7": (32, 20, 1, 1),
            "w4": (10, 72, 1, 1), "b4": (10,), "wf": (10, 10)},
    BLOCKS: {"w0": (32, 32, 1, 1), "w1": (32, 32, 1, 1), "w2": (32, 32, 1, 1)},
}  # fmt: skip
LEVELS = {
    "extended": GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def network(text: str) -> ir.Model:
    weights = {name: random(shape, seed, 0.2) for seed, (name, shape) in enumerate(SHAPES[text].items())}
    scalars = {"zero": np.float32(0), "six": np.float32(6), "twice": np.array([1, 1, 2, 2], np.float32)}
    return model_from_text(text, weights | {name: np.asarray(value) for name, value in scalars.items()})


def as_onnxruntime_saves(model: ir.Model, path: Path, level: GraphOptimizationLevel) -> Path:
    options = SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    options.optimized_model_filepath = str(path)
    InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("text", SHAPES, ids=["mixed", "blocks"])
def test_what_onnxruntime_saves_gets_its_own_weights_back(
    tmp_path: Path, text: str, level: GraphOptimizationLevel
) -> None:
    model = network(text)
    saved = load_model(as_onnxruntime_saves(model, tmp_path / "m.onnx", level))
    (feed,) = feeds(1, *((3, 16, 16) if text is MIXED else (32, 8, 8)))
    prepared, _ = prepare(saved, feed)
    assert not [node for node in prepared.graph if node.domain]
    found = [constant(node.inputs[1]) for node in prepared.graph if node.op_type == "Conv"]
    wanted = [constant(node.inputs[1]) for node in model.graph if node.op_type == "Conv"]
    assert sorted(array.tobytes() for array in found if array is not None) == sorted(
        array.tobytes() for array in wanted if array is not None
    )


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_optimized_or_not_they_are_quantized_alike(tmp_path: Path, level: GraphOptimizationLevel) -> None:
    data = feeds(24, 3, 16, 16)
    path = as_onnxruntime_saves(network(MIXED), tmp_path / "m.onnx", level)
    found, wanted = quantize(path, data).report, quantize(network(MIXED), data).report
    assert len(found.layers) == len(wanted.layers)
    assert found.proof.comparison.sqnr_db > wanted.proof.comparison.sqnr_db - 2
