"""Whatever reads float weights in the delivered file is named, whichever operator it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.calibration.observers import Dynamic
from tests.builders import feeds, model_from_text, random

MODES = {"static": Recipe(), "dynamic": Recipe(activations=Dynamic()), "weights": Recipe(weight_only=True)}
each_mode = pytest.mark.parametrize("recipe", MODES.values(), ids=MODES)


def fused(body: str, weights: dict[str, Any]) -> ir.Model:
    text = (
        f'<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>\nnet (float[N, 32] x) => (float y) {{ {body} }}'
    )
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def samples() -> list[dict[str, Any]]:
    return [{"x": random((3, 32), seed, 1.0)} for seed in range(16)]


@each_mode
def test_operators_of_other_domains_are_named(recipe: Recipe) -> None:
    body = """
        h = com.microsoft.CDist <metric = "euclidean"> (x, centers)
        y = MatMul (h, w)
    """
    report = quantize(fused(body, {"centers": random((40, 32), 1), "w": random((40, 8), 2)}), samples(), recipe).report
    assert report.left_float == {"h": "com.microsoft.CDist reads [40, 32] floats; no integer form of it is known"}


@each_mode
def test_standard_operators_that_read_much_are_named_and_vectors_are_not(recipe: Recipe) -> None:
    text = """net (float[N, 8, 32] x) => (float[N, 8, 32] y) {
        p = Add (x, places)
        n = LayerNormalization (p, g, b)
        y = MatMul (n, w)
    }"""
    vectors = {"g": 1 + random((32,), 1), "b": random((32,), 2)}
    weights = {"places": random((1, 8, 32), 3), "w": random((32, 32), 4)} | vectors
    report = quantize(model_from_text(text, weights), feeds(16, 8, 32), recipe).report
    assert report.left_float == {"p": "Add reads [1, 8, 32] floats; no integer form of it is known"}


@each_mode
def test_tables_that_stay_float_are_named(recipe: Recipe) -> None:
    text = """net (float[N, 32] x, int64[N] i) => (float[N, 32] y) {
        t = Gather (words, i)
        s = Add (x, t)
        y = MatMul (s, w)
    }"""
    model = model_from_text(text, {"words": random((20, 32), 1), "w": random((32, 32), 2)})
    data = [{"x": random((3, 32), seed, 1.0), "i": np.arange(3) + seed} for seed in range(16)]
    assert "small" in quantize(model, data, recipe).report.left_float["t"]


def test_scales_of_weights_that_are_codes_already_are_no_weights() -> None:
    body = """
        h = com.microsoft.MatMulNBits <K = 32, N = 512, bits = 4, block_size = 16> (x, codes, scales)
        y = MatMul (h, w)
    """
    codes = np.random.default_rng(0).integers(0, 255, (512, 2, 8), np.uint8)
    weights = {"codes": codes, "scales": np.full((512, 2), 0.1, np.float32), "w": random((512, 8), 2)}
    assert quantize(fused(body, weights), samples()).report.left_float == {}
