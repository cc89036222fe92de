"""Operators of onnxruntime's transformer optimizer: written out, they compute the same, and become integers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import quantize
from ptq.passes import prepare
from tests.builders import random

WIDTH, HEADS = 32, 4
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
}
NODES = {
    "attention": "y = com.microsoft.Attention <num_heads = 4> (x, w, b)",
    "masked": "y = com.microsoft.Attention <num_heads = 4> (x, w, b, m)",
    "causal": "y = com.microsoft.Attention <num_heads = 4, unidirectional = 1> (x, w, b, m)",
    "scaled": "y = com.microsoft.Attention <num_heads = 4, scale = 0.3, mask_filter_value = -50.0> (x, w, b, m)",
    "skip": "y = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (x, z, g, c, d)",
    "skip, no biases": "y = com.microsoft.SkipLayerNormalization (x, z, g)",
    "skip, sum read": "k, p, q, s = com.microsoft.SkipLayerNormalization (x, z, g, c, d)\ny = Mul (k, s)",
    "bias gelu": "y = com.microsoft.BiasGelu (x, d)",
    "fast gelu": "y = com.microsoft.FastGelu (x, d)",
    "fast gelu, no bias": "y = com.microsoft.FastGelu (x)",
    "gelu": "y = com.microsoft.Gelu (x)",
    "quick gelu": "y = com.microsoft.QuickGelu <alpha = 1.5> (x)",
    "embedding": "y, n = com.microsoft.EmbedLayerNormalization (ids, ids_kind, words, places, kinds, g, c)",
    "embedding without segments": "y, n = com.microsoft.EmbedLayerNormalization (ids, , words, places, , g, c)",
}


def fused(node: str) -> ir.Model:
    text = f"""<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
    net (float[1, 6, 32] x, float[1, 6, 32] z, int32[1, 6] m, int32[1, 6] ids, int32[1, 6] ids_kind)
        => (float[1, 6, 32] out) {{
        {node}
        out = MatMul (y, u)
    }}"""
    proto = onnx.parser.parse_model(text)
    for name, array in WEIGHTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(proto)


def samples(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        feed: dict[str, Any] = {name: rng.standard_normal((1, 6, WIDTH)).astype(np.float32) for name in ("x", "z")}
        feed["m"] = (np.arange(6) < rng.integers(3, 7))[None].astype(np.int32)
        feed |= {"ids": rng.integers(0, 50, (1, 6), np.int32), "ids_kind": rng.integers(0, 2, (1, 6), np.int32)}
        found.append(feed)
    return found


@pytest.mark.parametrize("name", NODES)
def test_written_out_it_computes_the_same(name: str) -> None:
    prepared, _ = prepare(fused(NODES[name]), samples(1)[0])  # checks on the sample, see `require_same`
    assert not [node for node in prepared.graph if node.domain]


@pytest.mark.parametrize(
    "node",
    [
        "y = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [32, 32, 32]> (x, w, b)",
        "y = com.microsoft.Attention <num_heads = 4> (x, w, b, lengths)",
    ],
)
def test_other_forms_stay(node: str) -> None:
    model = fused(node)
    if "lengths" in node:
        model.graph.initializers["lengths"] = ir.Value(name="lengths", const_value=ir.tensor(np.array([6], np.int32)))
        for each in model.graph:
            if each.domain:
                each.replace_input_with(3, model.graph.initializers["lengths"])
    prepared, _ = prepare(model, samples(1)[0])
    assert [node.op_type for node in prepared.graph if node.domain] == ["Attention"]


def test_projections_inside_attention_become_integers() -> None:
    result = quantize(fused(NODES["masked"]), samples(24))
    assert result.report.proof.kernels.num_linear >= 4
    assert result.report.proof.comparison.sqnr_db > 28
    kinds = Counter(node.op_type for node in result.delivery.model.graph)
    assert not kinds["Attention"]
