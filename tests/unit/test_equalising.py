"""Cross-layer equalisation: the same function, and less error where it is applied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Recipe, quantize
from ptq.calibration.split import split_samples
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.equalize import Equalize, channel_pairs
from ptq.passes.linear import constant
from ptq.recipe import Weights
from ptq.runtime import open_session
from tests.builders import feeds, model_from_text, random

BETWEEN = {
    "nothing": "b = Identity (a)",
    "Relu": "b = Relu (a)",
    "LeakyRelu": "b = LeakyRelu <alpha = 0.1> (a)",
    "PRelu": "b = PRelu (a, slope)",
    "ReLU6": "b = Clip (a, zero, six)",
    "Hardtanh": "b = Clip (a, minus, six)",
    "pools": "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)\n"
    "q = AveragePool <kernel_shape = [2, 2]> (p)\nb = Relu (q)",
    "Sigmoid": "b = Sigmoid (a)",
    "Clip from 1": "b = Clip (a, one, six)",
    "residual": "r = Relu (a)\nb = Add (r, x)",
}
HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "ReLU6", "Hardtanh", "pools")
SCALARS = {"zero": 0.0, "six": 6.0, "minus": -4.0, "one": 1.0}


def net(between: str, gains: Any = None, second: str = "group = 8") -> ir.Model:
    """Two 3x3 convolutions of 8 channels with something between, whose channels are as wide as `gains` say."""
    text = f"""
    net (float[1, 8, 8, 8] x) => (float[1, 8, H, W] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
        {BETWEEN[between]}
        y = Conv <pads = [1, 1, 1, 1], {second}> (b, w1, b1)
    }}"""
    gains = np.ones(8) if gains is None else np.asarray(gains)
    first = random((8, 8, 3, 3), 1, 0.1) * gains.reshape(-1, 1, 1, 1)
    weights = {"w0": first.astype(np.float32), "b0": random((8,), 2), "b1": random((8,), 4)}
    weights["w1"] = random((8, 1 if "8" in second else 8 // int(second[-1]), 3, 3), 3)
    weights["w1"] = (weights["w1"] / gains[:, None, None, None]).astype(np.float32)  # all outputs alike
    weights["slope"] = np.full((8, 1, 1), 0.25, np.float32)
    return model_from_text(text, weights | {name: np.float32(value) for name, value in SCALARS.items()})


UNEVEN = (20, 1, 1, 0.5, 1, 0.1, 1, 0.2)


@pytest.mark.parametrize("between", HOMOGENEOUS)
@pytest.mark.parametrize("second", ["group = 1", "group = 2", "group = 8"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_scales_within_pairs_change_nothing(between: str, second: str, seed: int) -> None:
    model, feed = net(between, second=second), feeds(1, 8, 8, 8, seed=seed)[0]
    (pair,) = channel_pairs(model)
    changed = model.clone()
    scales = np.exp(np.random.default_rng(seed).uniform(-1, 0 if "Clip" in BETWEEN[between] else 1, 8))
    if "Clip" in BETWEEN[between]:  # only what stays away from its bounds may be scaled
        scales = np.maximum(scales, 0.9)
        feed = {"x": feed["x"] * 0.2}
    Equalize({str(pair.value.name): scales})(changed)
    require_same("Equalise", float_outputs(model, feed, ()), float_outputs(changed, feed, ()))
    assert not np.array_equal(constant(changed.graph[0].inputs[1]), constant(model.graph[0].inputs[1]))


@pytest.mark.parametrize("between", sorted(set(BETWEEN) - set(HOMOGENEOUS) - {"nothing"}))
def test_what_is_not_homogeneous_or_read_elsewhere_is_no_pair(between: str) -> None:
    assert not list(channel_pairs(net(between)))


def test_an_output_of_the_model_is_no_pair() -> None:
    model = net("Relu")
    model.graph.outputs.append(model.graph[0].outputs[0])
    assert not list(channel_pairs(model))


def test_shared_weights_stay_shared() -> None:
    text = """
    net (float[1, 8, 8, 8] x) => (float[1, 8, 4, 4] y) {
        a = Conv (x, w)
        y = Conv (a, w)
    }"""
    assert not list(channel_pairs(model_from_text(text, {"w": random((8, 8, 3, 3), 1)})))


def sqnr_db(model: ir.Model, recipe: Recipe, samples: list[dict[str, Any]]) -> tuple[float, Any]:
    result = quantize(model, samples, recipe)
    session, real = result.session(), open_session(ir.to_proto(model).SerializeToString())
    pairs = [(session.run(None, feed)[0], real.run(None, feed)[0]) for feed in samples]
    error = sum(np.square(a - b).sum() for a, b in pairs)
    return float(10 * np.log10(sum(np.square(b).sum() for _, b in pairs) / error)), result


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_uneven_channels_gain(granularity: Any) -> None:
    model, samples = net("Relu", UNEVEN), feeds(32, 8, 8, 8)
    recipe = Recipe(weights=Weights(granularity=granularity))
    without, _ = sqnr_db(model, replace(recipe, equalize=False), samples)
    found, result = sqnr_db(model, recipe, samples)
    assert found > without + 6
    assert any("1 of 1 values between convolutions equalised" in note for note in result.report.notes)
    assert result.report.card()["quantization"]["equalized"] is True


def test_even_channels_are_left_alone() -> None:
    _, result = sqnr_db(net("Relu"), Recipe(), feeds(32, 8, 8, 8))
    assert not any("equalised" in note for note in result.report.notes)
    assert result.report.card()["quantization"]["equalized"] is False


def test_channels_near_a_bound_keep_their_width() -> None:
    model, samples = net("ReLU6", (30, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05)), feeds(32, 8, 8, 8)
    model.graph.initializers["b0"].const_value = ir.tensor(np.zeros(8, np.float32), name="b0")
    without, _ = sqnr_db(model, Recipe(equalize=False), samples)
    found, result = sqnr_db(model, Recipe(), samples)
    assert found > without + 6  # the result is compared with the float model, bounds included
    assert any("equalised" in note for note in result.report.notes)


def test_looking_ahead_consumes_nothing() -> None:
    class Reader:
        description, is_random, num_samples, skipped = "ten", False, 10, ()

        def __iter__(self) -> Any:
            from ptq.calibration.reader import Sample

            return iter([Sample({"x": np.full((1,), i, np.float32)}) for i in range(10)])

    split = split_samples(Reader(), hold_out=True)  # type: ignore[arg-type]
    assert [float(feed["x"][0]) for feed in split.ahead(9)] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert [float(feed["x"][0]) for feed in split.calibration_feeds()] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert split.expected == split.num_calibration
