"""Products of domain ai.ptq: every kernel against the specification, bit for bit, and against the operator's body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Recipe, quantize, target
from ptq.passes.native_products import Fields, pack_weight
from ptq.recipe import Weights
from ptq.runtime import open_session
from ptq.weights.gptq import Gptq
from tests.builders import feeds, model_from_text, native_product, random
from tests.runtime.test_native import CASES, LIBRARY, VARIANTS, kernel_of, needs_library


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes with odd tails, every word length, scales per feature and per block, tables, clips."""
    shape = st.tuples(st.integers(0, 3), st.integers(1, 9)) | st.tuples(st.integers(1, 20))
    low = draw(st.sampled_from([-1.0, 0.0, -3.0e38]))
    return {
        "op_type": draw(st.sampled_from(["DynamicMatMulNBits", "QLinearMatMulNBitsToFloat", "QLinearMatMulNBits"])),
        "N": draw(st.integers(1, 150)),
        "K": draw(st.integers(1, 200)),
        "bits": draw(st.sampled_from([2, 4, 8])),
        "block_size": draw(st.sampled_from([0, 16, 32, 64, 128])),
        "table": draw(st.booleans()),
        "clip": draw(st.sampled_from([None, (low, draw(st.sampled_from([1.0, 3.0e38])))])),
        "rows": draw(shape),
        "seed": draw(st.integers(0, 1 << 30)),
    }


@needs_library
def test_every_kernel_gives_the_bits_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(max_examples=CASES // 2, deadline=None)
    @given(layers())
    def check(layer: dict[str, Any]) -> None:
        data, x, _ = native_product(layer)
        monkeypatch.setenv("PTQ_KERNELS", "ref")
        expected = kernel_of(data, x)
        for name in VARIANTS:
            monkeypatch.setenv("PTQ_KERNELS", name)
            np.testing.assert_array_equal(kernel_of(data, x, threads=2), expected, err_msg=name)

    check()


@needs_library
@settings(max_examples=CASES // 4, deadline=None)
@given(layers())
def test_kernels_keep_to_the_body(layer: dict[str, Any]) -> None:
    """Codes times weights exactly; reals within what rounding them to 8 bits per block allows."""
    data, x, parts = native_product(layer)
    found = kernel_of(data, x).astype(np.float64)
    exact = parts["real"] @ parts["weight"].T + parts["bias"]
    if layer["op_type"] == "QLinearMatMulNBits":
        codes = np.clip(np.rint(exact / 0.05) + float(parts["y_zero"]), 0, 255)
        assert np.abs(found - codes).max(initial=0) <= 1
    else:
        error = np.abs(found - np.clip(exact, *(layer["clip"] or (-np.inf, np.inf))))
        assert (error <= rounding(layer, parts) + 1e-5 * (1 + np.abs(exact))).all()
    if layer["block_size"] in (0, layer["K"]) or layer["K"] % 16 == 0:  # what onnxruntime's own kernels take
        body = open_session(data).run(None, {"x": x})[0].astype(np.float64)
        assert body.shape == found.shape
        if layer["op_type"] == "QLinearMatMulNBits" and not layer["block_size"]:
            np.testing.assert_allclose(found, body, atol=1)
        elif not layer["op_type"].startswith("Dynamic") and not layer["block_size"]:
            np.testing.assert_allclose(found, body, rtol=1e-5, atol=1e-5)
        elif layer["op_type"] != "QLinearMatMulNBits":
            room = 2 * rounding(layer, parts, always=True)
            assert (np.abs(found - body) <= room + 1e-4 * (1 + np.abs(exact))).all()


def rounding(layer: dict[str, Any], parts: dict[str, Any], *, always: bool = False) -> Any:
    """Most that rounding the input to 8 bits per block moves each output: half a step times the weights' sum."""
    if not always and not layer["op_type"].startswith("Dynamic"):
        return 0.0
    total, block = np.zeros((*parts["real"].shape[:-1], layer["N"])), layer["block_size"] or layer["K"]
    for start in range(0, layer["K"], block):
        part = slice(start, start + block)
        reach = np.abs(parts["real"][..., part]).max(axis=-1, keepdims=True)
        total += reach / 254 * 1.001 @ np.abs(parts["weight"][:, part]).sum(axis=1)[None]
    return total


LAYER: dict[str, Any] = {
    "op_type": "DynamicMatMulNBits", "N": 20, "K": 64, "bits": 4, "block_size": 32, "table": False,
    "clip": (-3.0e38, 3.0e38), "rows": (3,), "seed": 0,
}  # fmt: skip
STATIC = LAYER | {"op_type": "QLinearMatMulNBits", "block_size": 0}


@needs_library
@pytest.mark.parametrize(
    ("layer", "changes", "word"),
    [
        (LAYER, {"bits": 3}, "bits is 3"),
        (LAYER, {"bits": 8}, "w is not packed"),
        (LAYER, {"N": 0}, "N is 0"),
        (LAYER, {"K": 1 << 40}, "K is"),
        (LAYER, {"K": 65}, "w is not packed"),
        (LAYER, {"block_size": 20}, "block_size is 20"),
        (LAYER, {"block_size": 16}, "w_scale is not"),
        (LAYER, {"min": 1.0, "max": -1.0}, "wrong order"),
        (LAYER, {"min": float("nan")}, "wrong order"),
        (LAYER, {"arrays": {"w": np.zeros((2, 8, 16, 3), np.uint8)}}, "w is not packed"),
        (LAYER, {"arrays": {"w": np.zeros(7, np.uint8)}}, "w is not packed"),
        (LAYER, {"arrays": {"w_scale": np.zeros((2, 2, 16), np.float32)}}, "scale of w is not positive"),
        (LAYER, {"arrays": {"w_scale": np.full((2, 2, 16), np.nan, np.float32)}}, "scale of w is not positive"),
        (LAYER, {"arrays": {"table": np.zeros(5, np.int8)}}, "table has 5"),
        (LAYER, {"arrays": {"bias": np.zeros(3, np.float32)}}, "bias has not"),
        (LAYER, {"arrays": {"bias": np.full(20, np.inf, np.float32)}}, "bias is not finite"),
        (STATIC, {"arrays": {"x_scale": np.float32(0)}}, "x_scale is not"),
        (STATIC, {"arrays": {"y_scale": np.float32(np.inf)}}, "y_scale is not"),
        (STATIC, {"arrays": {"y_scale": np.float32(1e-45)}}, "y_scale is not"),
        (STATIC, {"arrays": {"y_zero": np.zeros(2, np.uint8)}}, "y_zero_point has 2"),
    ],
)
def test_what_is_wrong_is_refused_by_name(layer: dict[str, Any], changes: dict[str, Any], word: str) -> None:
    data, _, _ = native_product(layer, **changes)
    with pytest.raises(Exception, match=f"(?s)product7.*{word}"):
        open_session(data, custom_ops=(str(LIBRARY),))


@needs_library
@pytest.mark.parametrize("shape", [(3, 63), (0,), ()])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    model = onnx.load_from_string(native_product(LAYER)[0])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=r"product7|Invalid rank"):
        kernel_of(model.SerializeToString(), np.zeros(shape, np.float32))


@needs_library
def test_blocks_that_are_not_finite_do_not_pass_unseen() -> None:
    data, x, _ = native_product(LAYER)
    for value in (np.nan, np.inf, -np.inf):
        broken = x.copy()
        broken[1, 40] = value
        found = kernel_of(data, broken)
        assert np.isnan(found[1]).all()
        np.testing.assert_array_equal(found[[0, 2]], kernel_of(data, x)[[0, 2]])


@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([2, 4, 8]), st.integers(0, 99))
def test_packing_is_the_layout_that_the_kernels_name(features: int, inputs: int, bits: int, seed: int) -> None:
    half = 1 << (bits - 1)
    values = np.random.default_rng(seed).integers(-half, half, (features, inputs)).astype(np.int8)
    packed = pack_weight(Fields.plain(values, bits), np.ones((features, 1), np.float32))
    per_group = 32 // bits
    for n in range(features):
        for k in range(0, inputs, 3):
            byte = packed.codes[n // 16, k // per_group, n % 16, k % 4]
            code = byte >> (k % per_group // 4 * bits) & ((1 << bits) - 1)
            assert packed.table[code] == values[n, k]


def perceptron() -> ir.Model:
    """MatMul and bias, Relu, Gemm, Relu, Gemm: every form of the operator that static quantization writes."""
    text = """
    m (float[N, 40] x) => (float[N, 7] y) {
        a = MatMul (x, w0)
        b = Add (a, b0)
        r = Relu (b)
        c = Gemm <transB = 1> (r, w1, b1)
        s = Relu (c)
        y = Gemm (s, w2)
    }"""
    weights = {"w0": random((40, 24), 1), "b0": random((24,), 2), "w1": random((33, 24), 3), "b1": random((33,), 4)}
    return model_from_text(text, {**weights, "w2": random((33, 7), 5)})


def test_words_without_a_kernel_stay_as_short_as_they_are() -> None:
    weights = Weights(method=Gptq(), bits=3)
    result = quantize(perceptron(), feeds(48, 40), Recipe(target="native", weights=weights, accept_poor=True))
    assert not [node for node in result.delivery.model.graph if node.domain]
    assert result.report.proof.kernels.num_linear == 3


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_one_file_runs_with_and_without_the_library(bits: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = target.host_target().name
    monkeypatch.setattr(target, "_has_vnni", lambda: True)
    data = feeds(48, 40)
    weights = Weights(bits=bits) if bits == 8 else Weights(method=Gptq(), bits=bits)
    result = quantize(perceptron(), data, Recipe(target="native", weights=weights, accept_poor=True))
    operators = [node.op_type for node in result.delivery.model.graph]
    assert [op for op in operators if "NBits" in op] == ["QLinearMatMulNBits"] * 2 + ["QLinearMatMulNBitsToFloat"]
    assert "Relu" not in operators
    assert "DequantizeLinear" not in operators
    path = tmp_path / "q.onnx"
    result.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    plain = open_session(path).run(None, dict(data[0]))[0]
    standard = quantize(perceptron(), data, Recipe(target=here, weights=weights, accept_poor=True)).session()
    steps = np.abs(plain).max() / 20
    np.testing.assert_allclose(plain, standard.run(None, dict(data[0]))[0], atol=steps)
    assert result.report.proof.kernels.num_linear == 3
    if LIBRARY is not None:
        assert result.report.proof.kernels.integer["QLinearMatMulNBits"] == 2
        np.testing.assert_allclose(kernel_of(path.read_bytes(), data[0]["x"]), plain, atol=steps)


@pytest.mark.parametrize(("bits", "kept"), [(8, 0), (4, 3)])
def test_without_vnni_only_short_weights_have_the_faster_kernel(
    bits: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_has_vnni", lambda: False)
    recipe = Recipe(target="native", weights=Weights(bits=bits), accept_poor=True)
    result = quantize(perceptron(), feeds(48, 40), recipe)
    assert sum(node.domain == "ai.ptq" for node in result.delivery.model.graph) == kept
    assert result.report.proof.kernels.num_linear == 3


def test_a_relu_at_the_end_becomes_the_lower_end(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_has_vnni", lambda: True)
    text = """
    m (float[N, 40] x) => (float[N, 24] y) {
        a = MatMul (x, w0)
        b = Add (a, b0)
        y = Relu (b)
    }"""
    model = model_from_text(text, {"w0": random((40, 24), 1), "b0": random((24,), 2)})
    result = quantize(model, feeds(32, 40), Recipe(target="native"))
    (node,) = [node for node in result.delivery.model.graph if node.domain == "ai.ptq"]
    assert (node.op_type, node.overload) == ("QLinearMatMulNBitsToFloat", "clipped")
    result.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    x = feeds(1, 40)[0]["x"]
    (plain,) = open_session(tmp_path / "q.onnx").run(None, {"x": x})
    assert plain.min() == 0.0
    if LIBRARY is not None:
        np.testing.assert_allclose(kernel_of((tmp_path / "q.onnx").read_bytes(), x), plain, rtol=1e-5, atol=1e-5)
