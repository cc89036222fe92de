"""Placement and lowering rules, each on the smallest graph that shows it, judged by what onnxruntime runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.core.errors import RecipeError, UnsupportedModelError
from ptq.core.saturation import overflows
from ptq.core.spec import QuantSpec
from ptq.job import Result
from ptq.passes.infer_shapes import observe
from ptq.recipe import LayerRule, Weights
from ptq.runtime import open_session
from ptq.weights import Gpfq, Gptq, Qronos, Rtn, WeightMethod
from tests.builders import Arrays, feeds, model_from_text, random


def run(text: str, weights: Arrays, *shape: int, recipe: Recipe | None = None) -> Result:
    return quantize(model_from_text(text, weights), feeds(16, *shape), recipe)


def operators(result: Result) -> list[str]:
    return [node.op_type for node in result.delivery.model.graph]


CONV = {"w": random((4, 3, 3, 3)), "v": random((4, 4, 1, 1), 1)}
HEAD = "net (float[N, 3, 8, 8] x) => (float[N, A, B, C] y) {\n a = Conv <pads = [1, 1, 1, 1]> (x, w)\n"


@pytest.mark.parametrize(
    ("body", "kernels"),
    [
        ("r = Relu (a)  y = Conv (r, v)", {"QLinearConv": 2}),
        ("r = Clip (a, zero, six)  y = Conv (r, v)", {"QLinearConv": 2}),
        ("r = LeakyRelu (a)  y = Conv (r, v)", {"QLinearConv": 2, "QLinearLeakyRelu": 1}),
        ("s = Sigmoid (a)  r = Mul (a, s)  y = Conv (r, v)", {"QLinearConv": 2, "QLinearMul": 1, "QLinearSigmoid": 1}),
        ("r = Add (a, a)  y = Conv (r, v)", {"QLinearConv": 2, "QLinearAdd": 1}),
        ("r = Pad (a, pads)  y = Conv (r, v)", {"QLinearConv": 2}),
        ("r = Concat <axis = 2> (a, a)  y = Conv (r, v)", {"QLinearConv": 2, "QLinearConcat": 1}),
        ("r = Transpose <perm = [0, 1, 3, 2]> (a)  y = Conv (r, v)", {"QLinearConv": 2}),
        ("r = MaxPool <kernel_shape = [2, 2]> (a)  y = Conv (r, v)", {"QLinearConv": 2}),
        ("r = Resize <mode = \"nearest\"> (a, , scales)  y = Conv (r, v)", {"QLinearConv": 2}),
    ],
)  # fmt: skip
def test_neighbours_of_a_convolution_keep_it_on_integers(body: str, kernels: dict[str, int]) -> None:
    weights = CONV | {"zero": np.float32(0), "six": np.float32(6), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    weights = {name: array for name, array in weights.items() if name in HEAD + body}
    result = run(HEAD + body + "}", weights, 3, 8, 8)
    assert dict(result.report.proof.kernels.integer) == kernels
    assert not result.report.proof.kernels.islands
    assert result.report.proof.comparison.sqnr_db > 28


def test_pad_moves_codes() -> None:
    pads = np.array([0, 2, 1, 1, 0, 2, 1, 1])
    result = run(HEAD + "y = Pad (a, pads) }", {"w": CONV["w"], "pads": pads}, 3, 8, 8)
    nodes = {node.op_type: node for node in result.delivery.model.graph}
    assert nodes["Pad"].inputs[0].producer().op_type == "QuantizeLinear"
    assert nodes["Pad"].inputs[2].dtype == ir.DataType.UINT8


def test_parts_of_a_concat_share_its_grid() -> None:
    body = "b = Relu (a)  c = Conv (b, v)  d = Relu (c)  e = Concat <axis = 1> (d, b)  y = Conv (e, u)}"
    result = run(HEAD + body, CONV | {"u": random((2, 8, 1, 1))}, 3, 8, 8)
    grids = [node.inputs[1] for node in result.delivery.model.graph if node.op_type == "QuantizeLinear"]
    names = {
        node.inputs[0].name: node.inputs[1].name
        for node in result.delivery.model.graph
        if node.op_type == "QuantizeLinear"
    }
    assert names["d"] == names["e"]  # read by the Concat alone
    assert names["b"] != names["e"]  # read by others too: keeps a grid of its own
    assert len(grids) == 5


def test_a_concat_of_uneven_ranges_is_named() -> None:
    body = "b = Conv <pads = [1, 1, 1, 1]> (x, u)  e = Concat <axis = 1> (a, b)  y = Conv (e, t)}"
    even, uneven = (
        run(HEAD + body, {"w": CONV["w"], "u": CONV["w"] * np.float32(factor), "t": random((2, 8, 1, 1))}, 3, 8, 8)
        for factor in (2, 600)
    )
    assert not even.report.notes
    assert [note.split(" joins")[0] for note in uneven.report.notes] == ["Concat 'e'"]


def test_a_concat_that_no_integer_reads_keeps_finer_grids() -> None:
    text = HEAD + "b = Conv <pads = [1, 1, 1, 1]> (x, u)  y = Concat <axis = 1> (a, b)}"
    result = run(text, {"w": CONV["w"], "u": CONV["w"] * np.float32(600)}, 3, 8, 8)
    assert "finer grids" in result.report.left_float["y"]


def test_a_layer_left_in_float_really_stays_float() -> None:
    body = HEAD + "r = Relu (a)  b = Conv (r, v)  s = Relu (b)  y = Conv (s, v)}"
    recipe = Recipe(exclude=("b",))
    result = run(body, CONV, 3, 8, 8, recipe=recipe)
    assert result.report.left_float["b"] == "excluded by 'b'"
    assert result.report.proof.kernels.num_linear == 2  # onnxruntime would silently make it three
    assert not result.report.proof.kernels.fallbacks


def test_narrow_groups_stay_float_and_depthwise_does_not() -> None:
    text = """net (float[N, 8, 8, 8] x) => (float[N, A, B, C] y) {
        a = Conv <group = 4> (x, w)  y = Conv <group = 8> (a, d) }"""
    result = run(text, {"w": random((8, 2, 3, 3)), "d": random((8, 1, 3, 3))}, 8, 8, 8)
    assert "2 channels per group" in result.report.left_float["a"]
    assert result.report.proof.kernels.num_linear == 1


def test_weights_shared_by_two_layers_are_stored_once() -> None:
    text = """net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
        a = Conv (x, v)  b = Relu (a)  c = Conv (b, v)  y = Add (a, c) }"""
    result = run(text, {"v": CONV["v"]}, 4, 8, 8)
    codes = [v for v in result.delivery.model.graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert len(codes) == 1


def test_no_float_weight_is_left_behind() -> None:
    result = run(HEAD + "r = Relu (a)  y = Conv (r, v)}", CONV, 3, 8, 8)
    floats = [v for v in result.delivery.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert all(value.const_value is not None and value.const_value.size <= 4 for value in floats)


def test_bias_scale_is_input_times_weight_scale_without_a_zero_point() -> None:
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w, b) }"
    model = run(text, {"w": CONV["w"], "b": random((4,), 3)}, 3, 8, 8).delivery.model
    conv = next(node for node in model.graph if node.op_type == "Conv")
    x, w, b = (value.producer() for value in conv.inputs)
    assert len(b.inputs) == 2
    scales = [node.inputs[1].const_value.numpy() for node in (x, w, b)]
    np.testing.assert_array_equal(scales[0] * scales[1], scales[2])


def test_overflowing_bias_raises_the_weight_scale_and_is_counted() -> None:
    weight, bias = CONV["w"].copy(), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    weight[2] = 1e-9
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w, b) }"
    result = run(text, {"w": weight, "b": bias}, 3, 8, 8)
    assert [row.bias_guarded for row in result.report.layers] == [1]
    assert result.report.proof.comparison.sqnr_db > 35


NET = HEAD + "r = Relu (a)  b = Conv (r, u)  f = Flatten (b)  y = Gemm (f, g)}"
NET_WEIGHTS = {"w": random((16, 3, 3, 3)), "u": random((16, 16, 1, 1), 1), "g": random((1024, 5), 2)}


@pytest.mark.parametrize("bits", [7, 6, 5, 4, 3, 2])
def test_short_codes_fill_their_bytes_and_run_like_int8(bits: int) -> None:
    result = run(NET, NET_WEIGHTS, 3, 8, 8, recipe=Recipe(weights=Weights(bits=bits), accept_poor=True))
    num_weights = sum(row.num_weights for row in result.report.layers)
    assert result.report.storage["codes"] == pytest.approx(num_weights * bits / 8, rel=0.002)
    assert sum(result.report.storage.values()) == result.delivery.num_bytes
    assert result.report.proof.kernels.num_linear == 3
    assert not result.report.proof.kernels.fallbacks
    assert max(row.levels for row in result.report.layers) <= 2**bits
    sample = feeds(1, 3, 8, 8, seed=5)[0]
    with result.delivery.as_file() as path:  # the same numbers, whatever the runtime folds
        plain, fused = (open_session(path, optimization=level).run(None, sample)[0] for level in ("none", "all"))
    np.testing.assert_allclose(plain, fused, atol=0.02 * np.abs(fused).max())


def test_a_weight_that_two_layers_share_is_stored_once() -> None:
    text = HEAD + "r = Relu (a)  b = Conv (r, v)  c = Relu (b)  y = Conv (c, v)}"
    for bits in (8, 4, 3):
        recipe = Recipe(weights=Weights(Gptq(), bits=bits), accept_poor=True)
        result = run(text, CONV, 3, 8, 8, recipe=recipe)
        assert result.report.storage["codes"] <= (108 + 16) * bits / 8 + 2


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Conv (x, v)", {"v": random((4, 3, 1, 1))}),
        ("y = Conv <group = 3> (x, v)", {"v": random((6, 1, 3, 3))}),
        ("y = ConvTranspose <strides = [2, 2], pads = [1, 1, 0, 0]> (x, v, b)",
         {"v": random((3, 5, 3, 3)), "b": random((5,), 3)}),
        ("y = MatMul (x, v)", {"v": random((8, 5))}),
        ("y = MatMul (v, x)", {"v": random((5, 8))}),
        ("f = Reshape (x, s) m = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (f, v, b) y = Reshape (m, t)",
         {"v": random((3, 5)), "b": random((5,), 3), "s": np.array([3, 64]), "t": np.array([1, 5, 8, 8])}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [Rtn(), Gptq()], ids=["rtn", "gptq"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_weights_alone_become_codes_and_run_as_float(
    body: str, weights: Arrays, bits: int, method: WeightMethod
) -> None:
    batch = "1" if "Gemm" in body else "N"
    text = f"net (float[{batch}, 3, 8, 8] x) => (float[A, B, C, D] y) {{ {body} }}"
    recipe = Recipe(weights=Weights(method, bits), weight_only=True)
    result = run(text, weights, 3, 8, 8, recipe=recipe)
    assert [row.num_bits for row in result.report.layers] == [bits]
    assert result.report.proof.comparison.sqnr_db > {8: 38, 4: 14, 3: 7}[bits]
    assert not result.report.proof.kernels.fallbacks
    assert result.report.proof.kernels.num_conversions == 0
    if method == Gptq() and "b" not in weights:  # constant parts of the output count for the model, not for the layer
        assert result.report.layers[0].output_sqnr_db == pytest.approx(result.report.proof.comparison.sqnr_db, abs=3)


@pytest.mark.parametrize("bits", [6, 4])
def test_short_activations_use_that_many_codes(bits: int) -> None:
    result = run(HEAD + "r = Relu (a)  y = Conv (r, v)}", CONV, 3, 8, 8, recipe=Recipe(activation_bits=bits))
    model = result.delivery.model
    codes = [node.outputs[0].name for node in model.graph if node.op_type == "QuantizeLinear"]
    wide = {"x": 5 * feeds(1, 3, 8, 8, seed=5)[0]["x"]}
    for array in observe(model, codes, wide):
        assert array.max() == 2**bits - 1
    assert result.report.proof.comparison.sqnr_db > 5 * bits - 12


def test_rules_change_single_layers() -> None:
    rules = (
        LayerRule("b", bits=3, method=Gptq()),
        LayerRule("Gemm", granularity="per-tensor"),
        LayerRule("re:[a]", skip=True),
    )
    result = run(NET, NET_WEIGHTS, 3, 8, 8, recipe=Recipe(layers=rules))
    assert [(row.name, row.num_bits, row.method) for row in result.report.layers] == [
        ("b", 3, "gptq"),
        ("y", 8, "gptq"),
    ]
    assert result.report.left_float == {"a": "excluded by 're:[a]'"}
    scales = [v for v in result.delivery.model.graph.initializers.values() if v.name.startswith("g_scale")]
    assert [len(value.shape) for value in scales] == [0]


def test_first_and_last_layers_have_a_policy() -> None:
    weights = Weights(bits=4, first_last_bits=8)
    text = HEAD + "p = Conv (x, v3) r = Relu (a)  b = Conv (r, v) q = Conv (b, v) s = Add (p, q) y = Conv (s, v)}"
    result = run(text, CONV | {"v3": random((4, 3, 1, 1))}, 3, 8, 8, recipe=Recipe(weights=weights))
    assert {row.name: row.num_bits for row in result.report.layers} == {"a": 8, "p": 8, "b": 4, "q": 4, "y": 8}
    assert result.report.card()["quantization"]["first_and_last_layer"] == "8 bits"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (LayerRule("nothing"), "matches no node"),
        (LayerRule("Relu", bits=4), "none of Conv"),
        (LayerRule("re:(", bits=4), "no regular expression"),
    ],
)
def test_rules_that_match_nothing_are_refused(rule: LayerRule, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(NET, NET_WEIGHTS, 3, 8, 8, recipe=Recipe(layers=(rule,)))


@pytest.mark.parametrize("method", [Gpfq(), Gptq(), Qronos()], ids=["gpfq", "gptq", "qronos"])
def test_too_few_samples_still_give_finite_weights(method: WeightMethod) -> None:
    """A handful of rows for 1024 inputs: a moment of low rank."""
    result = quantize(model_from_text(NET, NET_WEIGHTS), feeds(3, 3, 8, 8), Recipe(weights=Weights(method, 4)))
    assert result.report.proof.comparison.sqnr_db > 8
    assert np.isfinite(result.session().run(None, feeds(1, 3, 8, 8, seed=5)[0])[0]).all()


def test_the_right_operand_of_a_product_is_signed_and_centred() -> None:
    text = """net (float[N, 6, 8] x) => (float[N, 6, 6] y) {
        s = Softmax <axis = -1> (x)  t = Transpose <perm = [0, 2, 1]> (x)  y = MatMul (s, t) }"""
    result = run(text, {}, 6, 8)
    zeros = {
        node.inputs[0].name: node.inputs[2] for node in result.delivery.model.graph if node.op_type == "QuantizeLinear"
    }
    assert zeros["s"].dtype == ir.DataType.UINT8
    assert zeros["x"].dtype == ir.DataType.INT8
    assert zeros["x"].const_value.numpy() == 0
    assert result.report.proof.kernels.num_linear == 1


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm", "portable"])
def test_targets_choose_signs_and_word_lengths(target: str) -> None:
    text = HEAD + "r = Relu (a)  y = Conv (r, v)}"
    result = run(text, CONV, 3, 8, 8, recipe=Recipe(target=target))
    graph = result.delivery.model.graph
    codes = [
        v.const_value.numpy()
        for v in graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value.size > 40
    ]
    assert max(np.abs(array).max() for array in codes) > 63
    if target == "portable":  # channels are the innermost inputs of kernels
        rows = [np.moveaxis(array, 1, -1).reshape(len(array), -1) for array in codes]
        assert not any(overflows(each, np.arange(each.shape[1])) for each in rows)
    else:
        assert max(np.abs(array).max() for array in codes) == 127
    relu = next(node for node in graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "r")
    zero = relu.inputs[2].const_value.numpy()
    assert zero == QuantSpec(signed=target == "cpu-arm").qmin
    assert result.report.proof.kernels.num_linear == 2


def test_bodies_of_control_flow_stay_float_and_are_counted() -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        m = ReduceMean <keepdims = 0> (x)
        c = Greater (m, zero)
        b = If (c) <
            then_branch = t () => (float[N, 4, 8, 8] p) { p = Conv (a, v) },
            else_branch = e () => (float[N, 4, 8, 8] q) { r = Conv (a, v)  q = Relu (r) }>
        y = Conv (b, v) }"""
    result = run(text, CONV | {"zero": np.asarray(0, np.float32)}, 3, 8, 8)
    assert result.report.notes == ("2 layers inside If, Loop or Scan keep float kernels",)
    assert result.report.proof.kernels.num_linear == 2
    assert result.report.proof.comparison.sqnr_db > 25


def test_names_that_clash_with_ours_are_kept() -> None:
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] a_scale) { a = Conv (x, w)  a_scale = Relu (a) }"
    result = run(text, {"w": CONV["w"]}, 3, 8, 8)
    assert [value.name for value in result.delivery.model.graph.outputs] == ["a_scale"]


def test_graph_output_keeps_its_name_and_other_readers() -> None:
    result = run(HEAD + "r = Relu (a)  y = Conv (r, v)}".replace("=> (float", "=> (float"), CONV, 3, 8, 8)
    assert [value.name for value in result.delivery.model.graph.outputs] == ["y"]


@pytest.mark.parametrize("pattern", ["nothing", "re:[", "re:noth.*"])
def test_exclusions_that_match_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(RecipeError, match="exclude"):
        run(HEAD + "y = Relu (a)}", {"w": CONV["w"]}, 3, 8, 8, recipe=Recipe(exclude=(pattern,)))


def test_a_model_without_layers_stays_what_it_is_and_says_so() -> None:
    result = run("net (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }", {}, 3)
    assert any("no layer runs on integers" in finding.text for finding in result.report.verdict.findings)
    assert [node.op_type for node in result.delivery.model.graph] == ["Relu"]


def test_excluding_everything_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match="nothing to quantize: excluded by 'Conv'"):
        run(HEAD + "y = Relu (a)}", {"w": CONV["w"]}, 3, 8, 8, recipe=Recipe(exclude=("Conv",)))


def test_fragile_inputs_keep_their_layer_in_float() -> None:
    text = "net (float[N, 16] x) => (float[N, 8] y) { h = MatMul (x, w)  y = MatMul (h, u) }"
    samples = feeds(32, 16)
    for feed in samples:
        feed["x"] = feed["x"] * np.float32(0.01)
    samples[0]["x"][0, 0] = 100.0
    model = model_from_text(text, {"w": random((16, 12)), "u": random((12, 8), 1)})
    some, everything = (
        quantize(model, samples, Recipe(min_input_sqnr_db=limit, accept_poor=True)).report for limit in (50.0, 90.0)
    )
    assert ["its input keeps only" in reason for reason in some.left_float.values()] == [True]
    assert not everything.left_float  # leaving out all layers would leave nothing to do


@given(st.integers(0, 50))
@settings(max_examples=8)
def test_no_input_drives_a_sum_beyond_what_the_card_says(seed: int) -> None:
    weights = {"w": random((4, 3, 3, 3), seed), "b": random((4,), seed + 1)}
    result = run("net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w, b) }", weights, 3, 8, 8)
    (row,) = result.report.layers
    codes = {name: value.const_value.numpy() for name, value in result.delivery.model.graph.initializers.items()}  # type: ignore[union-attr]
    weight = next(array for array in codes.values() if array.dtype == np.int8 and array.ndim == 4).astype(np.int64)
    bias = next((array for array in codes.values() if array.dtype == np.int32), np.zeros(4)).astype(np.int64)
    zero = next(int(array) for array in codes.values() if array.dtype == np.uint8 and not array.ndim)
    for inputs in (np.where(weight > 0, 255 - zero, -zero), np.where(weight > 0, -zero, 255 - zero)):  # the worst ones
        sums = (inputs * weight).sum((1, 2, 3)) + bias
        assert np.abs(sums).max() <= row.accumulator
    assert 0 < row.accumulator < 2**31


def test_layers_whose_sums_could_overflow_stay_float() -> None:
    text = "net (float[N, 33000] x) => (float[N, 2] y) { h = MatMul (x, w)  y = MatMul (h, v) }"
    result = run(text, {"w": random((33000, 4), 1, 0.01), "v": random((4, 2), 2)}, 33000)
    assert "could overflow 32 bits" in result.report.left_float["h"]
