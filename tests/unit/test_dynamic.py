"""Ranges taken at run time: integer products, on stock operators and on our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ptq import PtqError, Recipe, quantize
from ptq import target as target_module
from ptq.calibration.observers import Dynamic
from ptq.core.affine import Range, choose_qparams, dequantize
from ptq.core.affine import quantize as round_to
from ptq.core.spec import QuantSpec
from ptq.passes.planner import NO_DYNAMIC_KERNEL
from ptq.recipe import Weights
from ptq.target import host_target
from ptq.weights import Gptq
from tests.builders import attention, conv_net, feeds, model_from_text, random
from tests.unit.test_balancing import outlier_net, sqnr_db


def products(opset: int = 17) -> ir.Model:
    """A product of a graph input, a Gemm each way round, one input read twice."""
    text = """
    net (float[N, 24] x) => (float[N, 9] y, float[N, 5] z) {
        a = MatMul (x, w0)
        b = Add (b0, a)
        r = Relu (b)
        y = Gemm <transB = 1> (r, w1, b1)
        z = Gemm (r, w2)
    }"""
    weights = {
        "w0": random((24, 32), 1), "b0": random((32,), 2), "w1": random((9, 32), 3), "b1": random((9,), 4),
        "w2": random((32, 5), 5),
    }  # fmt: skip
    return model_from_text(text, weights, opset)


@pytest.mark.parametrize("target", [None, "native"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_every_product_becomes_integers(target: str | None, bits: int, tmp_path: Any) -> None:
    samples = feeds(24, 24)
    result = quantize(products(), samples, Recipe(target, Dynamic(), Weights(bits=bits)))
    assert result.report.proof.kernels.num_linear == 3
    assert not result.report.proof.kernels.fallbacks
    assert len(result.report.layers) == 3
    assert sqnr_db(result, products(), samples) > {8: 32, 4: 10, 3: 4}[bits]
    result.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=target != "native")


@pytest.mark.parametrize("bits", [8, 4])
def test_an_input_has_the_grid_of_its_own_range(bits: int) -> None:
    """The slow obvious twin: round input and weight, multiply, add."""
    if bits == 8 and host_target().saturates:
        pytest.skip("weights of 8 bits have levels that neighbours decide on this processor; test_pairs")
    samples = feeds(24, 24)
    recipe = Recipe(None, Dynamic(), Weights(bits=bits, bias_correction=False), exclude=("y", "z"))
    result = quantize(products(), samples, recipe)
    model = products()
    wide = samples[0]["x"] * np.float32(37.5)  # far outside what was calibrated on
    weights = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    grid = choose_qparams(Range.of(min(wide.min(), 0), max(wide.max(), 0)), QuantSpec())
    steps = np.abs(weights["w0"]).max(0) / (2 ** (bits - 1) - 1)
    product = dequantize(round_to(wide, grid), grid) @ (np.round(weights["w0"] / steps) * steps)
    hidden = np.maximum(product + weights["b0"], 0)
    expected = hidden @ weights["w1"].T + weights["b1"]
    np.testing.assert_allclose(result.session().run(None, {"x": wide})[0], expected, rtol=1e-4, atol=1e-3)


def test_attention_shares_what_a_range_costs() -> None:
    samples = feeds(16, 7, 16)
    result = quantize(attention(), samples, Recipe(None, Dynamic()))
    nodes = [node.op_type for node in result.delivery.model.graph]
    assert nodes.count("MatMulInteger") == 6
    assert nodes.count("DynamicQuantizeLinear") == 4  # three projections read one
    assert nodes.count("MatMul") == 2  # of two activations: float
    assert sqnr_db(result, attention(), samples) > 30


def test_outlier_channels_do_not_reach_the_range() -> None:
    model, samples = outlier_net(), feeds(32, 6, 16)
    result = quantize(model, samples, Recipe(None, Dynamic()))
    assert "Clip" in {node.op_type for node in result.delivery.model.graph}
    assert sqnr_db(result, model, samples) > 36


def test_convolutions_stay_float_with_the_reason() -> None:
    result = quantize(conv_net(), feeds(16, 3, 16, 16), Recipe(None, Dynamic()))
    assert {row.op_type for row in result.report.layers} == {"Gemm"}
    assert NO_DYNAMIC_KERNEL in result.report.left_float.values()
    assert "ConvInteger" not in {node.op_type for node in result.delivery.model.graph}


@pytest.mark.parametrize(("has_vnni", "bits", "kept"), [(True, 8, 3), (True, 4, 3), (False, 8, 0), (False, 4, 3)])
def test_operators_of_our_own_run_where_they_are_faster(
    bits: int, kept: int, monkeypatch: pytest.MonkeyPatch, *, has_vnni: bool
) -> None:
    monkeypatch.setattr(target_module, "_has_vnni", lambda: has_vnni)
    result = quantize(products(), feeds(24, 24), Recipe("native", Dynamic(), Weights(bits=bits)))
    names = [node.op_type for node in result.delivery.model.graph]
    assert names.count("DynamicMatMulNBits") == kept
    assert names.count("MatMulInteger") == 3 - kept


@pytest.mark.parametrize("target", [None, "native"])
def test_blocks_are_dynamic_too(target: str | None) -> None:
    weights = Weights(Gptq(), 4, "block-16")
    samples = feeds(24, 24)
    result = quantize(products(), samples, Recipe(target, Dynamic(), weights))
    names = {node.op_type for node in result.delivery.model.graph}
    assert ("DynamicMatMulNBits" in names) == (target == "native")
    assert sqnr_db(result, products(), samples) > 12


def test_the_body_gives_what_the_kernel_gives(tmp_path: Any) -> None:
    result = quantize(products(), feeds(24, 24), Recipe("native", Dynamic(), Weights(bits=4)))
    result.save(tmp_path / "q.onnx")
    (feed,) = feeds(1, 24, seed=9)
    plain = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"]).run(None, feed)[0]
    kernel = result.session().run(None, feed)[0]
    assert np.abs(plain - kernel).max() < 0.05 * np.abs(plain).max()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PtqError, match="dynamic activations have 8"):
        Recipe(activations=Dynamic(), activation_bits=6)
    conv_only = model_from_text(
        "m (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Conv (x, w) }", {"w": random((3, 3, 1, 1))}
    )
    left = quantize(conv_only, feeds(4, 3, 4, 4), Recipe(activations=Dynamic())).report
    assert any("no layer runs on integers" in finding.text for finding in left.verdict.findings)
    assert "slower than the float one" in left.left_float["y"]


def test_a_table_that_is_read_and_multiplied_gets_names_of_its_own() -> None:
    """Tied embeddings: rows that Gather takes are codes, and what they are multiplied with is quantized to codes."""
    text = """
    m (int64[N, 6] ids) => (float[N, 6, 600] y) {
        rows = Gather (table, ids)
        h = MatMul (rows, w)
        r = Relu (h)
        turned = Transpose <perm = [1, 0]> (table)
        y = MatMul (r, turned)
    }"""
    model = model_from_text(text, {"table": random((600, 16)), "w": random((16, 16), 1)})
    samples = [{"ids": np.random.default_rng(seed).integers(0, 600, (1, 6))} for seed in range(24)]
    result = quantize(model, samples, Recipe(activations=Dynamic()))
    assert sum(node.op_type == "MatMulInteger" for node in result.delivery.model.graph) == 2
    assert sqnr_db(result, model, samples) > 25
