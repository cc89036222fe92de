"""Codes in full bytes, and the operators that unpack them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ptq.passes.packing import PACKED_BITS, PACKING_OPSET, CodeStream
from ptq.runtime import open_session
from tests.builders import Arrays, model_from_text

Codes = NDArray[np.int8]
IDENTITY = "net (float[N] x) => (float[N] y) { y = Relu (x) }"
UNPACKING = {"Range", "Div", "Mod", "Gather", "Cast", "BitwiseOr", "Reshape", "Split"}


def limits(bits: int) -> dict[str, int]:
    return {"min_value": -(1 << (bits - 1)), "max_value": (1 << (bits - 1)) - 1}


def codes_of(bits: int, *, max_dims: int = 5) -> st.SearchStrategy[Codes]:
    shapes = arrays.array_shapes(max_dims=max_dims, max_side=5)
    return arrays.arrays(np.int8, shapes, elements=st.integers(**limits(bits)))


def draw(bits: int, *shape: int, seed: int = 0) -> Codes:
    low, high = limits(bits).values()
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.int8)


@pytest.mark.parametrize("bits", [0, 4, 8, 9])
def test_words_that_onnx_has_types_for_are_not_packed(bits: int) -> None:
    stream = CodeStream(bits)
    stream.add("w", np.zeros(8, np.int8))
    with pytest.raises(ValueError, match="are not packed"):
        stream.write(model_from_text(IDENTITY, {}, PACKING_OPSET).graph)


def with_outputs(model: ir.Model, values: list[ir.Value]) -> ir.Model:
    """Show codes to whoever runs the model."""
    for value in values:
        node = ir.node("Cast", [value], {"to": int(ir.DataType.INT32)})
        shown = node.outputs[0]
        shown.name, shown.dtype, shown.shape = f"{value.name}_shown", ir.DataType.INT32, value.shape
        model.graph.append(node)
        model.graph.outputs.append(shown)
    return model


def run_both_ways(model: ir.Model, feed: Arrays) -> list[list[NDArray[Any]]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    serialized = proto.SerializeToString()
    return [open_session(serialized, optimization=level).run(None, feed) for level in ("none", "all")]


@settings(max_examples=40)
@given(st.data(), st.sampled_from(PACKED_BITS))
def test_the_graph_unpacks_what_was_packed(data: st.DataObject, bits: int) -> None:
    layers = data.draw(st.lists(codes_of(bits, max_dims=4), min_size=1, max_size=4))
    model, stream = model_from_text(IDENTITY, {}, PACKING_OPSET), CodeStream(bits)
    values = [stream.add(f"p{i}", codes) for i, codes in enumerate(layers)]  # names as the stream itself gives
    stream.write(model.graph)
    with_outputs(model, values)
    for _, *outputs in run_both_ways(model, {"x": np.ones(1, np.float32)}):
        assert len(outputs) == len(layers)
        for codes, output in zip(layers, outputs, strict=True):
            np.testing.assert_array_equal(output, codes)


def test_streams_stay_apart_from_each_other_and_from_the_names_of_the_model() -> None:
    text = """net (float[N] p0) => (float[N] y) {
        p1 = Greater (p0, p2)  m = ReduceMax <keepdims = 0> (p0)  c = Greater (m, p2)
        p3 = If (c) <then_branch = t () => (float[N] p4) { p5 = Relu (p0)  p4 = Neg (p5) },
                     else_branch = e () => (float[2] p6) <float[2] p6 = {7, 8}> {}>
        p7 = Cast <to = 1> (p1)  y = Add (p3, p7) }"""
    model = model_from_text(text, {"p2": np.asarray(0, np.float32)}, PACKING_OPSET)
    layers = [draw(bits, 3, size, seed=size) for bits, size in ((3, 5), (3, 8), (7, 1))]
    streams = [CodeStream(bits) for bits in (3, 3, 7)]
    names = ["p8", "p9", "w"]
    added = [stream.add(*each) for stream, *each in zip(streams, names, layers, strict=True)]
    with_outputs(model, added)
    for stream in streams:
        stream.write(model.graph)
    assert "p6" not in {value.name for node in model.graph for value in (*node.inputs, *node.outputs)}
    for y, *outputs in run_both_ways(model, {"p0": np.array([2, -1], np.float32)}):
        np.testing.assert_array_equal(y, [-1, 0])
        for codes, output in zip(layers, outputs, strict=True):
            np.testing.assert_array_equal(output, codes)


LAYERS = {
    "Conv": ((16, 16, 3, 3), "float[1, 16, 8, 8]", 0, "<pads = [1, 1, 1, 1]>", "QLinearConv"),
    "Gemm": ((64, 64), "float[8, 64]", 1, "", "QGemm"),
    "MatMul": ((64, 64), "float[8, 64]", 1, "", "QLinearMatMul"),
}


def chain(op_type: str, num_layers: int, bits: int) -> tuple[ir.Model, dict[str, Codes]]:
    """Layers between Q/DQ pairs, with plain int8 weights that keep the spread of the values."""
    shape, kind, axis, attributes, _ = LAYERS[op_type]
    codes = {f"w{i}": draw(bits, *shape, seed=i) for i in range(num_layers)}
    fan_in = np.prod(shape) / shape[axis]
    weights: Arrays = {"s": np.asarray(0.03, np.float32), "z": np.asarray(128, np.uint8), **codes}
    lines = ["q = QuantizeLinear (x, s, z)  d0 = DequantizeLinear (q, s, z)"]
    for i, array in enumerate(codes.values()):
        weights[f"s{i}"] = np.full(shape[axis], 1.1 / (array.std() * np.sqrt(fan_in)), np.float32)
        weights[f"z{i}"] = np.zeros(shape[axis], np.int8)
        lines += [
            f"v{i} = DequantizeLinear <axis = {axis}> (w{i}, s{i}, z{i})  a{i} = {op_type} {attributes} (d{i}, v{i})",
            f"q{i} = QuantizeLinear (a{i}, s, z)  d{i + 1} = DequantizeLinear (q{i}, s, z)",
        ]
    text = f"net ({kind} x) => ({kind} y) {{ {' '.join(lines)} y = Identity (d{num_layers}) }}"
    return model_from_text(text, weights, PACKING_OPSET + 1), codes


def packed_chain(op_type: str, num_layers: int, bits: int) -> ir.Model:
    model, codes = chain(op_type, num_layers, bits)
    stream = CodeStream(bits)
    for name, array in codes.items():
        old = model.graph.initializers.pop(name)
        old.replace_all_uses_with(stream.add(name, array))
    stream.write(model.graph)
    return model


@pytest.mark.parametrize(
    ("op_type", "num_layers", "bits"),
    [*(("Conv", 2, bits) for bits in PACKED_BITS), *((op, n, 3) for op in LAYERS for n in (1, 20))],
)
def test_packed_weights_run_on_the_same_integer_kernels(
    op_type: str, num_layers: int, bits: int, tmp_path: Path
) -> None:
    plain, _ = chain(op_type, num_layers, bits)
    packed = packed_chain(op_type, num_layers, bits)
    shape = [int(size) for size in plain.graph.inputs[0].shape.numpy()]
    feed = {"x": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}
    before, after = run_both_ways(plain, feed), run_both_ways(packed, feed)
    assert len(np.unique(before[1][0])) > 50
    np.testing.assert_array_equal(before, after)
    ir.save(packed, tmp_path / "packed.onnx")
    open_session(tmp_path / "packed.onnx", optimized_model_path=tmp_path / "optimized.onnx")
    operators = Counter(node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph)
    assert operators[LAYERS[op_type][-1]] == num_layers
    assert not operators.keys() & (UNPACKING | {op_type})


@pytest.mark.parametrize("bits", PACKED_BITS)
@pytest.mark.parametrize("num_layers", [5, 20])
def test_the_file_is_as_short_as_the_codes(bits: int, num_layers: int) -> None:
    packed = packed_chain("Conv", num_layers, bits)
    plain, codes = chain("Conv", num_layers, bits)
    count = sum(array.size for array in codes.values())
    constants = [value for name, value in packed.graph.initializers.items() if name not in plain.graph.initializers]
    stored = sum(value.const_value.nbytes for value in constants if value.dtype == ir.DataType.UINT8)
    assert count * bits / 8 <= stored <= count * bits / 8 + bits
    short, long = (len(ir.to_proto(model).SerializeToString()) for model in (packed, plain))
    nodes_and_names = short - long + count * (1 - bits / 8)
    assert nodes_and_names < 1600 + 20 * num_layers
