"""Gain of layers behind layers that err: told by both halves of the samples, and given back by the scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptq import Recipe
from ptq.core.affine import QuantParams
from ptq.core.arrays import Float
from ptq.core.damping import LayerMoments
from ptq.core.encoding import IntegerWeight
from ptq.core.layer_statistics import LayerStatistics
from ptq.core.spec import PerAxis, QuantSpec
from ptq.passes.placing import place
from ptq.solving.choices import choices_of
from ptq.solving.gain import gain_of, sides_of, with_layers_behind
from ptq.solving.layer import InputStatistics, LayerArrays, solve_layer
from ptq.target import CPU_X86
from ptq.weights import Gptq
from tests.builders import model_from_text, random

KERNEL = np.random.default_rng(0).standard_normal((4, 6, 1, 1)).astype(np.float32)
WEIGHT = KERNEL[:, :, 0, 0]


def moments(*slopes: float, noise: float = 0.0) -> LayerMoments:
    """Moments of halves whose quantized inputs are the float ones times a slope, and noise."""
    rng = np.random.default_rng(1)
    halves = []
    for slope in slopes:
        rows = rng.standard_normal((1, 400, 6)).astype(np.float32)
        given = (slope * rows + noise * rng.standard_normal(rows.shape)).astype(np.float32)
        halves.append(LayerStatistics.of(given, WEIGHT, rows))
    return LayerMoments(tuple(halves), tuple(halves))


def float_weight() -> Float:
    return WEIGHT.astype(np.float64)


def test_a_gain_that_both_halves_show_is_told() -> None:
    assert gain_of(sides_of(moments(0.8, 0.8), WEIGHT), float_weight()) == pytest.approx(0.8, abs=1e-3)
    assert gain_of(sides_of(moments(0.8, 0.8, noise=0.3), WEIGHT), float_weight()) == pytest.approx(0.8, abs=0.02)


def test_a_gain_that_one_half_alone_shows_counts_for_less_or_nothing() -> None:
    assert gain_of(sides_of(moments(0.8, 1.0), WEIGHT), float_weight()) > 0.99
    assert 0.82 < gain_of(sides_of(moments(0.7, 0.9), WEIGHT), float_weight()) < 0.88


def test_one_half_alone_equal_networks_and_silence_tell_nothing() -> None:
    assert gain_of(sides_of(moments(0.8), WEIGHT), float_weight()) == 1.0
    silent = LayerStatistics.of(np.zeros((1, 5, 6), np.float32), WEIGHT, np.zeros((1, 5, 6), np.float32))
    assert gain_of(sides_of(LayerMoments((silent,) * 2, (silent,) * 2), WEIGHT), float_weight()) == 1.0
    equal = LayerStatistics.of(np.ones((1, 5, 6), np.float32), WEIGHT)
    assert gain_of(sides_of(LayerMoments((equal,) * 2, (equal,) * 2), WEIGHT), 0.5 * float_weight()) == 1.0


def test_a_lost_signal_is_not_blown_up() -> None:
    assert gain_of(sides_of(moments(0.01, 0.01), WEIGHT), float_weight()) == 0.5
    assert gain_of(sides_of(moments(5.0, 5.0), WEIGHT), float_weight()) == 2.0


def test_scales_take_a_factor_and_codes_stay() -> None:
    grid = QuantParams(
        np.array([0.5, 0.25], np.float32), np.zeros(2, np.int8), QuantSpec(8, signed=True, granularity=PerAxis(0))
    )
    weight = IntegerWeight.of(np.array([[2, 4], [-4, 8]], np.int8), grid)
    twice = weight.scaled(2.0)
    assert np.array_equal(twice.codes, weight.codes)
    assert np.array_equal(twice.decode(), 2 * weight.decode())


@pytest.mark.parametrize("restored", [True, False])
def test_scales_make_up_for_what_noise_takes_of_a_layer_in_front_of_others(*, restored: bool) -> None:
    model = model_from_text("m (float[N, 6, 4, 4] x) => (float[N, 4, 4, 4] y) { y = Conv (x, w) }", {"w": KERNEL})
    layer = place(model).layers[0]
    arrays = LayerArrays.of(model, layer, ["y"] if restored else [])
    seen, choice = moments(0.9, 0.9, noise=0.5), choices_of(Recipe(), CPU_X86, model).weights
    solved = solve_layer(arrays, replace(choice, method=Gptq()), None, InputStatistics.of(seen, None, arrays, None))
    again = moments(0.9, 0.9, noise=0.5)  # the first ones are used up
    gain = gain_of(sides_of(again, WEIGHT), solved.encoding.decode().astype(np.float64))
    assert (abs(gain - 1) < 0.01) == restored


def test_only_layers_that_others_depend_on_make_up_for_their_gain() -> None:
    text = """m (float[N, 6] x) => (float[N, 6] y, float[N, 6] z)
    { a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) z = MatMul (x, w) }"""
    model = model_from_text(text, {"w": random((6, 6))})
    assert with_layers_behind(model.graph) == {"a"}
