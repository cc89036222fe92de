"""Graphs as onnxruntime's own tools write them: what onnxruntime runs is quantized, whatever ONNX knows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.calibration.observers import Dynamic
from ptq.core.errors import InputError
from ptq.models.foreign import HIDEOUT, hide_foreign, show_foreign
from ptq.models.load import load_model
from ptq.recipe.values import Weights
from tests.builders import feeds, random

BLOCK = """
    t = MatMul (x, a)
    n = {} (t, g{})
    y = MatMul (n, b)
"""
PLAIN, RMS = (
    "LayerNormalization <axis = -1, epsilon = 1e-5>",
    "SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5>",
)


def foreign(operator: str, opset: int, tail: str = "") -> onnx.ModelProto:
    text = f"net (float[N, 5, 32] x) => (float[N, 5, 16] y) {{ {BLOCK.format(operator, tail)} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["" : {opset}]>\n{text}')
    weights = {"a": random((32, 48), 1), "g": 1 + random((48,), 2), "h": random((48,), 3), "b": random((48, 16), 4)}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return proto


CASES = [(PLAIN, 11, ", h"), (PLAIN, 12, ""), (PLAIN, 13, ", h"), (RMS, 12, ""), (RMS, 17, ""), (RMS, 21, "")]
RECIPES = {
    "static": Recipe(),
    "dynamic": Recipe(activations=Dynamic()),
    "blocks": Recipe(weights=Weights(bits=4, granularity="block-16"), weight_only=True),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(("operator", "opset", "tail"), CASES)
def test_operators_that_onnxruntime_alone_knows_are_quantized_around(
    tmp_path: Path, recipe: Recipe, operator: str, opset: int, tail: str
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(foreign(operator, opset, tail), path)
    result = quantize(path, feeds(16, 5, 32), recipe)
    assert result.report.proof.kernels.num_linear == 2
    assert result.report.proof.comparison.sqnr_db > (28 if recipe.weights.bits == 8 else 15)
    assert [node.op_type for node in result.delivery.model.graph if "Normalization" in node.op_type]


def test_what_neither_knows_is_refused_in_onnxruntimes_words(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(foreign("Nonsense", 17), path)
    with pytest.raises(InputError, match=r"onnxruntime cannot load the model: .*Nonsense.*--custom-ops LIBRARY"):
        quantize(path, feeds(16, 5, 32))


def test_what_is_wrong_beside_a_foreign_operator_is_still_found(tmp_path: Path) -> None:
    proto = foreign(PLAIN, 12)
    proto.graph.node[2].op_type = "Concat"  # without its axis
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="invalid ONNX model: Required attribute 'axis'"):
        load_model(tmp_path / "m.onnx")


def test_weights_in_a_file_beside_are_no_matter_to_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = foreign(RMS, 21)
    proto.graph.node[0].name = proto.graph.node[2].name = "twice"  # put right, so the file is not what is checked
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir("/")
    model = load_model(tmp_path / "m.onnx")
    weight = model.graph.initializers["a"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), random((32, 48), 1))


def test_hiding_is_undone_in_bodies_and_functions_too() -> None:
    text = """<ir_version: 9, opset_import: ["" : 16, "local" : 1]>
    net (float[N, 6] x, float[6] g, bool c) => (float[N, 6] y) {
        y = If (c) <then_branch = one () => (p) { p = SimplifiedLayerNormalization (x, g) },
                    else_branch = two () => (q) { q = local.norm (x, g) }>
    }
    <domain: "local", opset_import: ["" : 16]>
    norm (a, s) => (b) { b = LayerNormalization (a, s) }"""
    proto = onnx.parser.parse_model(text)
    before = proto.SerializeToString(deterministic=True)
    assert hide_foreign(proto)
    onnx.checker.check_model(proto)
    hidden = [node.domain for node in proto.functions[0].node] + [entry.domain for entry in proto.opset_import]
    assert f"{HIDEOUT}:" in hidden
    show_foreign(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert ir.from_proto(proto).functions
