"""Operators of onnxruntime's transformer optimizer: written out, they compute the same, and become integers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.core.layer import LinearLayer
from ptq.passes import prepare
from ptq.passes.linear import bias_add, describe_linear
from ptq.passes.unfuse import Unfuse
from tests.builders import random

WIDTH = 32
WEIGHTS = {
    "w": random((WIDTH, 3 * WIDTH), 1),
    "b": random((3 * WIDTH,), 2),
    "g": 1 + random((WIDTH,), 3),
    "c": random((WIDTH,), 4),
    "d": random((WIDTH,), 5),
    "words": random((50, WIDTH), 6),
    "places": random((20, WIDTH), 7),
    "kinds": random((2, WIDTH), 8),
    "u": random((WIDTH, WIDTH), 9),
    "uneven": random((WIDTH, 80), 10),
    "uneven_bias": random((80,), 11),
}
CACHE = "\nt = ReduceMax <keepdims = 0> (now)\ny = Add (v, t)"
LENGTHS = "\ny = com.microsoft.Attention <num_heads = 4> (k, w, b, n)"
NODES = {
    "attention": "y = com.microsoft.Attention <num_heads = 4> (x, w, b)",
    "masked": "y = com.microsoft.Attention <num_heads = 4> (x, w, b, m)",
    "causal": "y = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b, m)",
    "scaled": "y = com.microsoft.Attention <num_heads = 4, scale = 0.3, mask_filter_value = -50.0> (x, w, b, m)",
    "lengths": "y = com.microsoft.Attention <num_heads = 4> (x, w, b, ends)",
    "starts": "y = com.microsoft.Attention <num_heads = 4> (x, w, b, ends_and_starts)",
    "causal starts": "y = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b, ends_and_starts)",
    "lengths and offsets": "y = com.microsoft.Attention <num_heads = 4> (x, w, b, offsets)",
    "mask per query": "y = com.microsoft.Attention <num_heads = 4> (x, w, b, each)",
    "uneven widths": "v = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [24, 24, 32]>"
    " (x, uneven, uneven_bias)\ny = Relu (v)",
    "past": "v, now = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b, , past)" + CACHE,
    "past, masked": "v, now = com.microsoft.Attention <num_heads = 4> (x, w, b, longer, past)" + CACHE,
    "keys read": "v, now = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b)" + CACHE,
    "skip": "y = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (x, z, g, c, d)",
    "skip, no biases": "y = com.microsoft.SkipLayerNormalization (x, z, g)",
    "skip, sum read": "k, p, q, s = com.microsoft.SkipLayerNormalization (x, z, g, c, d)\ny = Mul (k, s)",
    "RMS skip": "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, z, g, d)",
    "RMS skip, sum read": "k, p, q, s = com.microsoft.SkipSimplifiedLayerNormalization (x, z, g)\ny = Mul (k, s)",
    "bias gelu": "y = com.microsoft.BiasGelu (x, d)",
    "fast gelu": "y = com.microsoft.FastGelu (x, d)",
    "fast gelu, no bias": "y = com.microsoft.FastGelu (x)",
    "gelu": "y = com.microsoft.Gelu (x)",
    "quick gelu": "y = com.microsoft.QuickGelu <alpha = 1.5> (x)",
    "embedding": "y, n = com.microsoft.EmbedLayerNormalization (ids, ids_kind, words, places, kinds, g, c)",
    "embedding without segments": "y, n = com.microsoft.EmbedLayerNormalization (ids, , words, places, , g, c)",
    "embedding, lengths": "k, n = com.microsoft.EmbedLayerNormalization (ids, , words, places, , g, c, m)" + LENGTHS,
    "embedding, no mask": "k, n = com.microsoft.EmbedLayerNormalization (ids, , words, places, , g, c)" + LENGTHS,
    "product": "y = com.microsoft.FusedMatMul <alpha = 0.5> (x, u)",
    "product, turned": "y = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, u)",
    "product of two": "k = com.microsoft.FusedMatMul <alpha = 0.3, transB = 1> (x, z)\ny = MatMul (k, x)",
    "product of two, inner": "i = Abs (x)\nk = com.microsoft.FusedMatMul <transA = 1> (i, z)\ny = MatMul (x, k)",
    "gemm": 'f = Squeeze (x)\nh = com.microsoft.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.2,'
    " transB = 1> (f, u, d)\ny = Unsqueeze (h, first)",
    "gemm, Relu": 'f = Squeeze (x)\nh = com.microsoft.FusedGemm <activation = "Relu"> (f, u)\ny = Unsqueeze (h, first)',
}
INPUTS = """float[1, 6, 32] x, float[1, 6, 32] z, int32[1, 6] m, int32[1, 6] ids, int32[1, 6] ids_kind, int32[A] ends,
    int32[B] ends_and_starts, int32[C] offsets, int32[1, 6, 6] each, float[2, 1, 4, 2, 8] past, int32[1, 8] longer"""


def fused(node: str, opset: int = 17) -> ir.Model:
    text = f"""<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    net ({INPUTS}) => (float[1, 6, 32] out) {{
        {node}
        out = MatMul (y, u)
    }}"""
    proto = onnx.parser.parse_model(text)
    for name, array in (WEIGHTS | {"first": np.array([0])}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def samples(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        feed: dict[str, Any] = {name: rng.standard_normal((1, 6, WIDTH)).astype(np.float32) for name in ("x", "z")}
        end = rng.integers(3, 6)
        feed["m"] = (np.arange(6) < end)[None].astype(np.int32)
        feed |= {"ids": rng.integers(0, 50, (1, 6), np.int32), "ids_kind": rng.integers(0, 2, (1, 6), np.int32)}
        feed |= {"ends": np.array([end], np.int32), "ends_and_starts": np.array([end, 2], np.int32)}
        feed["offsets"] = np.array([end, 0, 6, 0, end], np.int32)
        feed["each"] = np.tril(np.ones((1, 6, 6), np.int32))
        feed |= {"past": rng.standard_normal((2, 1, 4, 2, 8)).astype(np.float32)}
        feed["longer"] = (np.arange(8) != end)[None].astype(np.int32)
        found.append(feed)
    return found


@pytest.mark.parametrize("name", NODES)
def test_written_out_it_computes_the_same(name: str) -> None:
    prepared, _ = prepare(fused(NODES[name]), samples(1)[0])  # checks on the sample, see `require_same`
    assert not [node for node in prepared.graph if node.domain]


def test_below_the_opset_of_layer_normalization_it_is_raised_first() -> None:
    prepared, notes = prepare(fused(NODES["masked"], 13), samples(1)[0])
    assert not [node for node in prepared.graph if node.domain]
    assert notes == ("opset raised from 13 to 17: what stands for fused operators needs 17",)


def test_without_a_form_the_opset_stays() -> None:
    model = fused("y = com.microsoft.Trilu (x)", 13)
    assert prepare(model, samples(1)[0])[1] == ()


STAYING = {
    "weight computed": "s = ReduceMax <keepdims = 0> (x)\nt = Mul (w, s)\n"
    "y = com.microsoft.Attention <num_heads = 4> (x, t, b)",
    "no weight inside": "y = com.microsoft.MultiHeadAttention <num_heads = 4> (x, x, x, b)",
    "unknown operator": "y = com.microsoft.Trilu (x)",
}


@pytest.mark.parametrize("name", STAYING)
def test_other_forms_stay(name: str) -> None:
    prepared, _ = prepare(fused(STAYING[name]), samples(1)[0])
    assert [node.op_type for node in prepared.graph if node.domain == "com.microsoft"] != []
    constants = {str(value.name) for node in prepared.graph for value in node.inputs if value is not None}
    assert constants >= set(prepared.graph.initializers)  # nothing is left behind by what was tried


@pytest.mark.parametrize("first", ["f, x", "x, f"], ids=["product first", "product last"])
@pytest.mark.parametrize(
    "kind", ["SkipLayerNormalization ({}, g, c, d)", "SkipSimplifiedLayerNormalization ({}, g, d)"], ids=["mean", "rms"]
)
def test_the_bias_of_a_skip_is_that_of_the_product_before(kind: str, first: str) -> None:
    node = f"f = MatMul (z, u)\ny = com.microsoft.{kind.format(first)}"
    report = quantize(fused(node), samples(16), Recipe(weight_only=True)).report
    assert [row.name for row in report.layers] == ["f", "out"]
    prepared, _ = prepare(fused(node), samples(1)[0])
    (product,) = (node for node in prepared.graph if node.outputs[0].name == "f")
    add = bias_add(product)
    assert add is not None
    assert "d" in {value.name for value in add.inputs if value is not None}


def test_biases_of_an_attention_go_to_the_products_before() -> None:
    node = """q = MatMul (x, u)
    k = MatMul (z, u)
    v = MatMul (z, u)
    y = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, b)"""
    prepared, _ = prepare(fused(node), samples(1)[0])
    layers = [describe_linear(node) for node in prepared.graph if node.op_type == "MatMul"]
    assert [layer.bias for layer in layers if isinstance(layer, LinearLayer)] == [
        "y_query_bias", "y_key_bias", "y_value_bias", None,
    ]  # fmt: skip
    assert [any(node.inputs[3:]) for node in prepared.graph if node.op_type == "MultiHeadAttention"] == [False]


def test_shapes_that_no_run_told_leave_the_node_as_it_is() -> None:
    model = fused("y = com.microsoft.Attention <num_heads = 4> (x, w, b, ends)")
    assert not Unfuse()(model).modified
    assert Unfuse({"ends": (1,)})(model).modified


def test_names_tell_where_layers_were_and_are_no_others() -> None:
    """Names of the written operators, where one of them is taken."""
    model = fused("y_1 = Relu (x)\ny = com.microsoft.Attention <num_heads = 4> (y_1, w, b)")
    prepared, _ = prepare(model, samples(1)[0])
    names = [str(value.name) for node in prepared.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert all(name.startswith("y") for name in names if name != "out")


def test_bodies_are_written_out_too() -> None:
    node = """mean = ReduceMean <keepdims = 0> (x)
    least = ReduceMin <keepdims = 0> (z)
    above = Greater (mean, least)
    y = If (above) <
        then_branch = one () => (float[1, 6, 32] p) {
            p = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b) },
        else_branch = two () => (float[1, 6, 32] q) {
            k = com.microsoft.SkipLayerNormalization (x, z, g)
            q = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (k, u) }>"""
    (feed,) = samples(1)
    for shift in (0, -100):  # one branch, and the other
        prepared, _ = prepare(fused(node), feed | {"x": feed["x"] + np.float32(shift)})
        assert not [node for node in prepared.graph.all_nodes() if node.domain]


def test_projections_inside_attention_become_integers() -> None:
    result = quantize(fused(NODES["masked"]), samples(24))
    assert result.report.proof.kernels.num_linear >= 4
    assert result.report.proof.comparison.sqnr_db > 28
    kinds = Counter(node.op_type for node in result.delivery.model.graph)
    assert not kinds["Attention"]
