"""What every preparing pass has to do: keep every output, on every graph, with onnxruntime's own fusions off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq.core.errors import EquivalenceError
from ptq.models.lean import SMALL, message_without_weights
from ptq.passes import PREPARE, PrepareStep, prepare
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.normalize import SumToAdd
from tests.builders import attention, conv_net, feeds, model_from_text, random

each_step = pytest.mark.parametrize("step", [pytest.param(step, id=type(step).__name__) for step in PREPARE])


def old_opset() -> ir.Model:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        d = Dropout (a)
        b = BatchNormalization (d, g, h, m, v)
        y = Relu (b)
    }"""
    weights = {"w": random((4, 3, 3, 3)), "g": random((4,), 1), "h": random((4,), 2), "m": random((4,), 3)}
    return model_from_text(text, weights | {"v": np.abs(random((4,), 4)) + 0.1}, opset=9)


def old_and_wide() -> ir.Model:
    """Its weights are larger than what is copied to raise an opset; the shape is one that decides."""
    text = """
    net (float[N, 16, 16, 3] x) => (float[N, 160] y) {
        f = Reshape (x, s)
        a = Gemm (f, w, b)
        r = Relu (a)
        y = MatMul (r, v)
    }"""
    weights = {"w": random((768, 160), 1, 0.05), "b": random((160,), 2), "v": random((160, 160), 3)}
    return model_from_text(text, weights | {"s": np.array([-1, 768])}, opset=9)


def dropout_at_the_end() -> ir.Model:
    text = "net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { a = Relu (x)\n y = Dropout (a) }"
    return model_from_text(text, {}, opset=13)


def transposed_batchnorm() -> ir.Model:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 4, 17, 17] y) {
        a = ConvTranspose <strides = [2, 2]> (x, w, b)
        y = BatchNormalization (a, g, h, m, v)
    }"""
    weights = {"w": random((3, 4, 3, 3)), "b": random((4,), 9), "g": random((4,), 1), "h": random((4,), 2)}
    return model_from_text(text, weights | {"m": random((4,), 3), "v": np.abs(random((4,), 4)) + 0.1})


def product_batchnorm() -> ir.Model:
    text = """
    net (float[N, 6] x) => (float[N, 4] y) {
        a = MatMul (x, w)
        y = BatchNormalization (a, g, h, m, v)
    }"""
    weights = {"w": random((6, 4)), "g": random((4,), 1), "h": random((4,), 2), "m": random((4,), 3)}
    return model_from_text(text, weights | {"v": np.abs(random((4,), 4)) + 0.1})


def odd_gemms() -> ir.Model:
    text = """
    net (float[1, 24] x) => (float[9, 7] y) {
        t = Reshape (x, s)
        a = Gemm <transA = 1, alpha = 0.5, beta = 3.0> (t, w, b)
        c = Gemm <transA = 1, transB = 1, alpha = 2.0> (a, v)
        y = Gemm <beta = 0.0> (c, u, d)
    }"""
    weights = {"w": random((6, 9)), "b": random((9,), 1), "v": random((5, 4), 2), "u": random((5, 7), 3)}
    return model_from_text(text, weights | {"d": random((7,), 4), "s": np.array([6, 4])})


def channels_scaled_and_shifted() -> ir.Model:
    """As converters write normalizations and biases; layers with groups, without a bias, and turned weights."""
    text = """
    net (float[N, 4, 8, 8] x) => (float[N, 7] y) {
        a = Conv <group = 2> (x, w)
        b = Mul (a, g)
        c = Sub (h, b)
        r = Relu (c)
        d = ConvTranspose <group = 2, strides = [2, 2]> (r, v, i)
        e = Div (d, g)
        f = Add (one, e)
        p = GlobalAveragePool (f)
        q = Flatten (p)
        k = Gemm <transB = 1> (q, m, o)
        l = Sub (k, n)
        s = Gemm (l, t)
        y = Mul (s, one)
    }"""
    channels = {
        "g": np.abs(random((6, 1, 1), 1)) + 0.2,
        "h": random((1, 6, 1, 1), 2),
        "one": np.array([1.5], np.float32),
    }
    layers = {"w": random((6, 2, 3, 3)), "v": random((6, 3, 2, 2), 3), "i": random((6,), 4), "m": random((5, 6), 5)}
    return model_from_text(
        text, channels | layers | {"o": random((1, 5), 6), "n": random((5,), 7), "t": random((5, 7))}
    )


def weights_as_inputs() -> ir.Model:
    proto = ir.to_proto(conv_net())
    for tensor in proto.graph.initializer:
        value = proto.graph.input.add(name=tensor.name)
        value.type.tensor_type.elem_type = tensor.data_type
        for extent in tensor.dims:
            value.type.tensor_type.shape.dim.add(dim_value=extent)
    return ir.from_proto(proto)


def function() -> ir.Model:
    text = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    net (float[N, 6] x) => (float[N, 6] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 17]>
    twice (a) => (b) { t = Relu (a)  b = Sum (t, a) }"""
    return ir.from_proto(onnx.parser.parse_model(text))


IMAGE, VECTOR = (3, 8, 8), (6,)
GRAPHS: list[tuple[Callable[[], ir.Model], tuple[int, ...]]] = [
    (conv_net, (3, 16, 16)),
    (attention, (7, 16)),
    (old_opset, IMAGE),
    (dropout_at_the_end, IMAGE),
    (transposed_batchnorm, IMAGE),
    (product_batchnorm, VECTOR),
    (weights_as_inputs, (3, 16, 16)),
    (old_and_wide, (16, 16, 3)),
    (function, VECTOR),
    (odd_gemms, (24,)),
    (channels_scaled_and_shifted, (4, 8, 8)),
]
each_graph = pytest.mark.parametrize(("build", "shape"), GRAPHS, ids=lambda value: getattr(value, "__name__", ""))


@each_step
@each_graph
def test_step_preserves_every_output(step: PrepareStep, build: Callable[[], ir.Model], shape: tuple[int, ...]) -> None:
    model = build()
    (feed,) = feeds(1, *shape)
    before = float_outputs(model, feed)
    changed = model.clone()
    step(changed)
    require_same(type(step).__name__, before, float_outputs(changed, feed))


@each_graph
def test_prepare_preserves_every_output_and_the_model(build: Callable[[], ir.Model], shape: tuple[int, ...]) -> None:
    model = build()
    (feed,) = feeds(1, *shape)
    source = ir.to_proto(model).SerializeToString(deterministic=True)
    prepared, _ = prepare(model, feed)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == source
    require_same("prepare", float_outputs(model, feed), float_outputs(prepared, feed))
    onnx.checker.check_model(ir.to_proto(prepared), full_check=True)
    operators = {node.op_type for node in prepared.graph}
    assert not operators & {"BatchNormalization", "Dropout", "Constant"}
    assert not prepared.functions
    assert all(value.dtype is not None for node in prepared.graph for value in node.outputs)
    assert {i.name for i in prepared.graph.inputs} == {"x"}


def test_a_message_leaves_weights_where_they_are() -> None:
    model = old_and_wide()
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    message, aside = message_without_weights(model)
    assert sorted(aside) == ["v", "w"]
    assert message.ByteSize() < SMALL
    assert {t.name: tuple(t.dims) for t in message.graph.initializer} == {
        name: tuple(tensor.shape.numpy()) for name, tensor in before.items() if tensor is not None
    }
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in before.items())


def test_a_pass_that_changes_the_result_is_named() -> None:
    class Broken(SumToAdd):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            for node in model.graph:
                if node.op_type == "Relu":
                    node.op_type = "Abs"
            return ir.passes.PassResult(model, True)

    (feed,) = feeds(1, 3, 16, 16)
    with pytest.raises(EquivalenceError, match="Broken"):
        prepare(conv_net(), feed, steps=[*PREPARE, Broken()])


def test_infinite_outputs_are_the_same_as_themselves() -> None:
    """Warnings are errors here: a difference of two infinities would be one."""
    value = {"y": np.array([np.inf, -np.inf, np.nan, 1.0], np.float32)}
    require_same("nothing", value, value)
    with pytest.raises(EquivalenceError, match="changed output 'y' by 0"):
        require_same("something", value, {"y": np.array([1.0, -np.inf, np.nan, 1.0], np.float32)})
