"""Weights scaled by what they meet before they are rounded, where the scale is free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.core.spec import INT8_WEIGHT, PerBlock
from ptq.job import Result
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.smooth_activations import normalization_for
from ptq.passes.smooth_values import gated_projections
from ptq.recipe import LayerRule, Weights
from ptq.transforms import ScaleSalient
from ptq.transforms.scale_salient import best_lift
from ptq.weights import Gptq, Hqq, Rtn, WeightMethod
from tests.builders import SWIGLU_WIDTH as WIDTH
from tests.builders import model_from_text, random, swiglu
from tests.transforming import rewritten


def samples(count: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 5, WIDTH)).astype(np.float32)} for _ in range(count)]


def rounded(model: ir.Model, bits: int, method: WeightMethod, *, equalize: bool = True) -> Result:
    recipe = Recipe(weight_only=True, accept_poor=True, weights=Weights(method, bits, "block-32"), equalize=equalize)
    return quantize(model, samples(), recipe, evaluation=samples(seed=1))


SPEC = replace(INT8_WEIGHT, num_bits=4, granularity=PerBlock(1, 32))
RECIPE = Recipe(weight_only=True, accept_poor=True, weights=Weights(bits=4, granularity="block-32"))


def solved(match: str) -> Recipe:
    """Some layers are solved by a method that sees their inputs."""
    return replace(RECIPE, layers=(LayerRule(match, method=Gptq()),))


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("method", [Rtn(), Rtn("mse"), Hqq()], ids=["rtn", "rtn-mse", "hqq"])
def test_rounded_weights_behind_wide_channels_err_less(bits: int, method: WeightMethod) -> None:
    results = [rounded(swiglu(20.0), bits, method, equalize=equalize) for equalize in (False, True)]
    without, scaled = (result.report.proof.comparison.sqnr_db for result in results)
    assert scaled > without + 1.0
    assert results[1].report.card()["quantization"]["equalized"] is True
    assert any("behind 2 inputs scaled before rounding" in note for note in results[1].report.notes)


def test_outputs_stay_and_only_weights_change() -> None:
    model, (first, *_) = swiglu(20.0), samples(1)
    lifted = rewritten(model, samples(), ScaleSalient(), RECIPE)
    require_same("test", float_outputs(model, first), float_outputs(lifted.model, first))
    assert lifted.evened_out
    assert [node.op_type for node in lifted.model.graph] == [node.op_type for node in model.graph]


def test_even_channels_and_methods_that_see_inputs_are_left_alone() -> None:
    model = swiglu(1.0)
    assert rewritten(model, samples(), ScaleSalient(), RECIPE).model is model
    assert not any("scaled before" in note for note in rounded(swiglu(20.0), 4, Gptq()).report.notes)
    assert not rewritten(swiglu(20.0), samples(), ScaleSalient(), solved("*")).notes


def test_a_scale_is_not_free_where_others_read_or_other_methods_solve() -> None:
    model = swiglu(20.0, added="n")
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    value = nodes["g"].inputs[0]
    assert value is not None
    assert normalization_for(value, [nodes["g"], nodes["u"]]) is None
    (note,) = rewritten(model, samples(), ScaleSalient(), RECIPE).notes
    assert "behind 1 inputs" in note
    (note,) = rewritten(swiglu(20.0), samples(), ScaleSalient(), solved("u")).notes
    assert "behind 1 inputs" in note  # u reads what g reads, and is not rounded


def test_scales_pass_a_gate_on_its_linear_side_alone() -> None:
    assert gated_projections(swiglu(1.0)) == {"d": "u"}
    text = """
    m (float[B, 8] x) => (float[B, 8] y) {
        u = MatMul (x, w0)
        e = Erf (u)
        z = Mul (u, e)
        y = MatMul (z, w1)
    }"""
    assert not gated_projections(model_from_text(text, {"w0": random((8, 16)), "w1": random((16, 8))}))


def test_the_search_is_never_worse_than_no_scale() -> None:
    spec = replace(SPEC, granularity=PerBlock(1, 16))
    for seed in range(4):
        square = np.square(random((32,), seed + 50).astype(np.float64)) + 1e-6
        scale, gain_db = best_lift([(random((32, 20), seed), spec)], square)
        assert gain_db >= 0
        assert (scale > 0).all()
    assert best_lift([(random((32, 20)), spec)], np.zeros(32))[1] == 0
