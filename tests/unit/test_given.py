"""Models that are quantized already: never torn apart, completed where they came in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.api import Result
from ptq.calibration.observers import Dynamic
from ptq.given.find import OPEN_CENTERED, OPEN_CODES, OPEN_OUTPUT, OPEN_WEIGHT, given_integers
from ptq.inspection import inspect_model
from ptq.models.sessions import run, session_of
from ptq.passes.fold_codes import FoldCodes
from ptq.passes.unsigned_codes import UnsignedCodes
from ptq.recipe import Goals, Weights
from tests.builders import Arrays, attention, conv_net, feeds, model_from_text, random

CHANNELS = 16


def pair(name: str) -> str:
    return f"{name}q = QuantizeLinear ({name}, s, z)\n{name}d = DequantizeLinear ({name}q, s, z)\n"


def decoded(name: str) -> str:
    return f"{name}q = QuantizeLinear ({name}, t, o)\n{name}d = DequantizeLinear ({name}q, t, o)\n"


TRAINED = f"""
net (float[N, {CHANNELS}, 8, 8] x) => (float[N, 4] y) {{
    {pair("x")} {decoded("a")}
    i = Conv <pads = [1, 1, 1, 1]> (xd, ad)
    r = Relu (i)
    {pair("r")} {decoded("b")}
    j = Conv <pads = [1, 1, 1, 1]> (rd, bd)
    h = Add (j, r)
    u = Relu (h)
    g = GlobalAveragePool (u)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, c)
}}"""
"""Export of quantization-aware training: float weights to be rounded at load, no grid in front of the residual sum."""


def constants(**more: Any) -> Arrays:
    shape = (CHANNELS, CHANNELS, 3, 3)
    arrays = {"a": random(shape, 1, 0.1), "b": random(shape, 2, 0.1), "c": random((4, CHANNELS), 3)}
    scales = {"s": np.float32(0.03), "z": np.uint8(128), "t": np.float32(0.004), "o": np.int8(0)}
    return {name: np.asarray(array) for name, array in (arrays | scales | more).items()}


def trained() -> ir.Model:
    return model_from_text(TRAINED, constants())


def samples(count: int = 16) -> list[Arrays]:
    return feeds(count, CHANNELS, 8, 8)


def outputs(model: ir.Model | Path | bytes, feed: Arrays) -> Any:
    with session_of(model) as session:
        return run(session, dict(feed))


def bytes_of(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())


RECIPES = {
    "static": Recipe(),
    "dynamic": Recipe(activations=Dynamic()),
    "weight-only": Recipe(weight_only=True),
    "weight-only, 4 bits": Recipe(weight_only=True, weights=Weights(bits=4)),
    "native": Recipe(target="native"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_our_own_output_comes_back_as_it_was(name: str) -> None:
    model, data = (conv_net(), feeds(9, 3, 16, 16)) if name == "static" else (attention(), feeds(9, 5, 16))
    first = quantize(model, data, RECIPES[name]).delivery.data
    assert first is not None
    for recipe in (Recipe(), Recipe(activations=Dynamic()), Recipe(weight_only=True)):
        again = quantize(first, data, recipe)
        assert again.delivery.data == first
        assert again.report.verdict.passed
        assert again.report.notes[0].startswith("already quantized: delivered as it came")
        assert not again.report.verdict.findings  # neither larger nor slower than it came, and no advice


def test_a_float_weight_behind_quantize_linear_becomes_its_codes() -> None:
    model, feed = trained(), samples(1)[0]
    before = outputs(trained(), feed)
    assert FoldCodes()(model).modified
    np.testing.assert_array_equal(outputs(model, feed)[0], before[0])
    kinds = {str(value.dtype) for value in model.graph.initializers.values() if len(value.shape or ()) == 4}
    assert kinds == {"INT8"}


def test_what_an_export_of_trained_integers_lacks_is_found() -> None:
    found = given_integers(trained())
    assert found is not None
    assert found.open == {"i": OPEN_CODES, "j": OPEN_CODES, "y": OPEN_WEIGHT}
    folded = trained()
    FoldCodes()(folded)
    found = given_integers(folded)
    assert found is not None
    assert found.open == {"i": OPEN_CENTERED, "j": OPEN_OUTPUT, "y": OPEN_WEIGHT}


def test_codes_below_a_relu_are_dropped_exactly() -> None:
    model, feed = trained(), samples(1)[0]
    before = outputs(trained(), feed)
    assert UnsignedCodes()(model).modified
    np.testing.assert_array_equal(outputs(model, feed)[0], before[0])
    (clip,) = [node for node in model.graph if node.op_type == "Clip"]
    assert clip.inputs[2].const_value.numpy() == 127  # type: ignore[union-attr]


def test_a_float_model_holds_no_integers() -> None:
    assert given_integers(conv_net()) is None
    assert given_integers(attention()) is None


def completed() -> Result:
    return quantize(bytes_of(trained()), samples())


def test_an_export_of_trained_integers_is_completed() -> None:
    result = completed()
    assert result.report.notes[0].startswith("already quantized in part")
    assert result.report.proof.comparison.sqnr_db > 25
    assert result.report.proof.kernels.num_linear == 3
    assert not result.report.proof.kernels.fallbacks
    assert result.delivery.num_bytes < 0.5 * len(bytes_of(trained()))


def test_trained_grids_and_codes_stay_as_they_came() -> None:
    graph = completed().delivery.model.graph
    scales = {value.name: value for value in graph.initializers.values()}
    assert scales["s"].const_value is not None
    assert scales["s"].const_value.numpy() == np.float32(0.03)
    folded = trained()
    FoldCodes()(folded)
    codes = [value.const_value.numpy() for value in folded.graph.initializers.values() if len(value.shape or ()) == 4]
    kept = [v.const_value.numpy() for v in graph.initializers.values() if len(v.shape or ()) == 4]
    for array in codes:
        assert any(np.array_equal(array, other) for other in kept)


def test_a_residual_sum_reads_the_trained_grid_too() -> None:
    graph = completed().delivery.model.graph
    (rounded,) = [node for node in graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "r"]  # type: ignore[union-attr]
    readers = [use.node for use in rounded.outputs[0].uses()]
    assert [node.op_type for node in readers] == ["Clip", "DequantizeLinear"]  # the Conv saw 128 codes, the sum none
    assert [use.node.op_type for use in readers[1].outputs[0].uses()] == ["Add"]
    assert rounded.inputs[1].name == "s"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "recipe",
    [Recipe(weight_only=True), Recipe(activations=Dynamic()), Recipe(optimize="latency")],
    ids=["weight-only", "dynamic", "latency"],
)
def test_modes_without_grids_deliver_pairs_as_they_came(recipe: Recipe) -> None:
    given = quantize(conv_net(), feeds(9, 3, 16, 16)).delivery.model.clone()
    given.metadata_props.clear()  # as if another program had made it
    given = bytes_of(given)
    assert quantize(given, feeds(9, 3, 16, 16), recipe).delivery.data == given


def test_layers_that_came_in_float_are_named() -> None:
    given = trained()
    FoldCodes()(given)
    result = quantize(bytes_of(given), samples(), Recipe(weight_only=True))
    assert result.report.left_float["y"] == OPEN_WEIGHT
    assert '"y"' in result.report.card_json()


BLOCKS = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
net (float[1, 16] x) => (float[1, 64] y) {{
    h = com.microsoft.MatMulNBits <K = 16, N = 64, bits = 4, block_size = 16> (x, w, s)
    y = {last}
}}"""


def packed(last: str) -> bytes:
    proto = onnx.parser.parse_model(BLOCKS.format(last=last))
    rng = np.random.default_rng(0)
    arrays = {"w": rng.integers(0, 255, (64, 1, 8)).astype(np.uint8), "s": np.full(64, 0.1, np.float32)}
    for name, array in (arrays | {"v": random((64, 64), 4)}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True), Recipe(activations=Dynamic())])
def test_weights_on_codes_of_another_program_are_kept(recipe: Recipe) -> None:
    given = packed("Relu (h)")
    assert quantize(given, feeds(9, 16), recipe).delivery.data == given
    result = quantize(packed("MatMul (h, v)"), feeds(9, 16), recipe)
    assert result.report.notes[0].startswith("already quantized in part")
    assert [row.name for row in result.report.layers] == ["y"]
    (node,) = [node for node in result.delivery.model.graph if node.op_type == "MatMulNBits"]
    kept = ir.from_proto(onnx.load_from_string(given)).graph.initializers["w"].const_value
    assert kept is not None
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), kept.numpy())  # type: ignore[union-attr]


def test_a_goal_on_time_is_judged() -> None:
    given = quantize(attention(), feeds(9, 5, 16)).delivery.data
    report = quantize(given, feeds(9, 5, 16), Recipe(goals=Goals(max_latency_ratio=0.1))).report
    assert not report.verdict.passed


def test_inspection_says_so() -> None:
    given = quantize(attention(), feeds(9, 5, 16)).delivery.data
    assert given is not None
    assert inspect_model(given)["preparation"][0].startswith("already quantized")
