"""Layers that stay on float kernels: their weights lie on codes all the same, unless the user says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.api import Result
from ptq.calibration.observers import Dynamic
from ptq.core.errors import RecipeError
from ptq.passes.lifting import weights_of
from ptq.passes.linear import name_of
from ptq.passes.planner import NO_KERNEL
from ptq.passes.stored import find_stored
from ptq.recipe import LayerRule, Weights
from ptq.recipe.text import parse_rule
from ptq.weights import Gptq, Rtn
from tests.builders import feeds, model_from_text, random

ON_CODES = "; float kernel, weight on codes"
DYNAMIC = Recipe("cpu-x86", Dynamic())

NET = """
net (float[N, 16, 6, 6] x) => (float[N, 16, 12, 12] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    r = Relu (a)
    g = Conv <group = 4, pads = [1, 1, 1, 1]> (r, wg)
    y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (g, wt)
}"""


def net() -> ir.Model:
    shapes = {"wa": (16, 16, 3, 3), "wg": (16, 4, 3, 3), "wt": (16, 16, 4, 4)}
    return model_from_text(NET, {name: random(shape, i, 0.1) for i, (name, shape) in enumerate(shapes.items())})


def made(recipe: Recipe) -> Result:
    return quantize(net(), feeds(16, 16, 6, 6), recipe)


def float_weights(result: Result) -> set[str]:
    """Constants of more than a scale per feature that are float in the file."""
    constants = result.delivery.model.graph.initializers.values()
    return {str(v.name) for v in constants if v.dtype == ir.DataType.FLOAT and v.const_value.size > 256}  # type: ignore[union-attr]


def test_layers_without_an_integer_kernel_are_named_and_their_weights_on_codes() -> None:
    report = made(Recipe("cpu-x86")).report
    assert report.left_float["y"] == NO_KERNEL + ON_CODES
    assert report.left_float["g"].endswith("slower than the float one" + ON_CODES)
    assert [row.name for row in report.layers] == ["a"]
    assert float_weights(made(Recipe("cpu-x86"))) == set()


def test_they_cost_a_quarter_of_their_bytes_and_next_to_no_accuracy() -> None:
    result = made(Recipe("cpu-x86"))
    floats = sum(value.const_value.nbytes for value in net().graph.initializers.values())  # type: ignore[union-attr]
    assert result.delivery.num_bytes < 0.25 * floats + 4000  # the graph
    assert result.report.proof.comparison.sqnr_db > 35


def test_convolutions_of_dynamic_models_lie_on_codes_and_run_as_in_float() -> None:
    result = made(DYNAMIC)
    assert float_weights(result) == set()
    assert all(reason.endswith(ON_CODES) for reason in result.report.left_float.values())
    assert set(result.report.left_float) == {"a", "g", "y"}
    assert not result.report.proof.kernels.fallbacks  # nothing is decoded on every run
    assert result.report.proof.comparison.sqnr_db > 35


def test_what_the_user_excludes_stays_float_with_its_weight() -> None:
    result = made(Recipe("cpu-x86", exclude=("ConvTranspose",)))
    assert float_weights(result) == {"wt"}
    assert result.report.left_float["y"] == "excluded by 'ConvTranspose'"
    skipped = made(Recipe("cpu-x86", layers=(LayerRule("y", skip=True),)))
    assert float_weights(skipped) == {"wt"}


def test_a_weight_that_an_excluded_layer_reads_too_stays_float() -> None:
    model = net()
    nodes = {name_of(node): node for node in model.graph}
    twin = ir.Node("", "ConvTranspose", nodes["y"].inputs, nodes["y"].attributes.values())
    twin.outputs[0].name = "twin"
    model.graph.insert_after(nodes["y"], twin)
    assert [weight.name for weight in find_stored(model, lambda _: None, ["y", "twin"])] == ["wt"]
    assert find_stored(model, lambda node: "no" if node is twin else None, ["y", "twin"]) == ()


def test_a_rule_leaves_a_layer_to_its_float_kernel() -> None:
    rule = parse_rule("a:float_kernel")
    assert rule == LayerRule("a", float_kernel=True)
    result = made(Recipe("cpu-x86", layers=(rule,)))
    assert result.report.left_float["a"] == "left to a float kernel by 'a'" + ON_CODES
    assert float_weights(result) == set()


def test_a_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="layers: 'b' matches no node"):
        made(Recipe("cpu-x86", layers=(LayerRule("b", float_kernel=True),)))


@pytest.mark.parametrize(("rule", "bits"), [(None, 8), (LayerRule("y", bits=4), 4), (LayerRule("y", bits=8), 8)])
def test_they_have_8_bits_unless_a_rule_says_otherwise(rule: LayerRule | None, bits: int) -> None:
    result = made(Recipe("cpu-x86", weights=Weights(bits=4), layers=() if rule is None else (rule,)))
    assert f"weights on {bits} bits" in " ".join(result.report.notes)


def test_layers_with_coarse_inputs_keep_weights_on_codes() -> None:
    text = """
    net (float[B, S, 32] x) => (float[B, S, 24] y) {
        h = MatMul (x, u)
        e = Exp (x)
        z = Mul (e, e)
        q = Mul (z, z)
        w = MatMul (q, v)
        y = Add (h, w)
    }"""
    model = model_from_text(text, {"u": random((32, 24), 1), "v": random((32, 24), 2)})
    recipe = replace(Recipe("cpu-x86"), equalize=False, min_input_sqnr_db=40.0)
    report = quantize(model, feeds(16, 8, 32), recipe).report
    assert [row.name for row in report.layers] == ["h"]
    assert "a few values dwarf the rest" in report.left_float["w"]
    assert report.left_float["w"].endswith(ON_CODES)


EXPERTS, WIDTH = 4, 16
MIXTURE = f"""<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
    r = MatMul (x, wr)
    m = com.microsoft.MoE <k = 2, activation_type = "gelu"> (x, r, w1, b1, w2, b2)
    y = Add (m, x)
}}"""


def mixture() -> ir.Model:
    proto = onnx.parser.parse_model(MIXTURE)
    shapes: dict[str, tuple[int, ...]] = {"wr": (WIDTH, EXPERTS), "b1": (EXPERTS, 2 * WIDTH), "b2": (EXPERTS, WIDTH)}
    shapes |= {"w1": (EXPERTS, 2 * WIDTH, WIDTH), "w2": (EXPERTS, WIDTH, 2 * WIDTH)}
    for name, shape in shapes.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random(shape, 3), name))
    return ir.from_proto(proto)


@pytest.mark.parametrize("recipe", [Recipe("cpu-x86"), DYNAMIC], ids=["static", "dynamic"])
def test_experts_lie_on_codes(recipe: Recipe) -> None:
    data: Any = [{"x": random((1, WIDTH), seed, 1.0)} for seed in range(16)]
    result = quantize(mixture(), data, recipe)
    assert result.report.left_float["m"] == NO_KERNEL + ON_CODES
    assert float_weights(result) == set()
    assert result.report.proof.comparison.sqnr_db > 30


def test_a_product_with_a_matrix_for_every_head_lies_on_codes() -> None:
    text = "net (float[4, S, 16] x) => (float[4, S, 16] y) { y = MatMul (x, w) }"
    model = model_from_text(text, {"w": random((4, 16, 16), 1)})
    data: Any = [{"x": random((4, 3, 16), seed, 1.0)} for seed in range(8)]
    for recipe in (Recipe("cpu-x86"), DYNAMIC, Recipe(weight_only=True)):
        result = quantize(model, data, recipe)
        assert result.report.left_float["y"] == "its weight has 3 axes; integer kernels want 2" + ON_CODES
        (weight,) = find_stored(model, lambda _: None, ["y"])
        assert weight.axes == (0, 2)
        np.testing.assert_array_less(30.0, result.report.proof.comparison.sqnr_db)


@pytest.mark.parametrize("recipe", [Recipe("cpu-x86"), DYNAMIC], ids=["static", "dynamic"])
def test_weights_on_codes_are_read_back(recipe: Recipe) -> None:
    for model, data in ((net(), feeds(8, 16, 6, 6)), (mixture(), [{"x": random((1, WIDTH), 1, 1.0)}] * 8)):
        result = quantize(model, data, recipe)
        lifted = weights_of(result.delivery.model)
        stored = find_stored(model, lambda _: None, result.report.left_float)
        names = {weight.reader if weight.reader in lifted else weight.name for weight in stored}
        assert names <= lifted.keys()


POSITIVE = """
net (float[N, 16, 6, 6] x) => (float[N, 4, 6, 6] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, wa)
    r = Relu (a)
    y = Conv (r, wy, by)
}"""


def positive_net() -> ir.Model:
    """The inputs of its second layer have large means: rounding of that weight shifts the output."""
    weights = {"wa": random((48, 16, 3, 3), 1, 0.1), "wy": random((4, 48, 1, 1), 2), "by": random((4,), 3)}
    return model_from_text(POSITIVE, weights)


FLOAT_KERNELS = Recipe("cpu-x86", layers=(LayerRule("*", float_kernel=True),))


@pytest.mark.parametrize("recipe", [DYNAMIC, FLOAT_KERNELS])
def test_their_biases_take_up_the_mean_error_of_their_weights(recipe: Recipe) -> None:
    data = [{"x": np.abs(feed["x"]) + 1} for feed in feeds(24, 16, 6, 6)]
    errors = []
    for corrects in (True, False):
        weights = replace(recipe.weights, bias_correction=corrects)
        proof = quantize(positive_net(), data, replace(recipe, weights=weights)).report.proof
        errors.append(proof.comparison.sqnr_db)
    assert errors[0] > errors[1] + 1


def test_their_weights_are_solved_where_the_method_looks_at_inputs() -> None:
    data = [{"x": np.abs(feed["x"]) + 1} for feed in feeds(24, 16, 6, 6)]
    by_method = []
    for method in (Gptq(), Rtn()):
        recipe = replace(FLOAT_KERNELS, weights=Weights(method))
        by_method.append(quantize(positive_net(), data, recipe).report.proof.comparison.sqnr_db)
    assert by_method[0] > by_method[1] + 1
