"""Float islands by stated times: what stays float, who asks for integers, and results that are the same twice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.allocation.islands import FASTER, find_islands
from ptq.allocation.stated_times import stated_times, work_of
from ptq.core.affine import QuantParams
from ptq.core.kernel_costs import Rates, Work
from ptq.core.spec import QuantSpec
from ptq.inspection import inspect_model
from ptq.passes import place
from ptq.passes.infer_shapes import infer_statically, shapes_on
from ptq.passes.linear import name_of
from ptq.recipe import Weights
from ptq.target import CPU_X86
from ptq.weights import Rtn
from tests.builders import Arrays, feeds, model_from_text, random

ARRAYS: Arrays = {
    "w": random((16, 3, 3, 3), 0), "d": random((16, 1, 5, 5), 1), "e": random((16, 1, 5, 5), 2),
    "v": random((96, 16, 3, 3), 3, 0.1), "u": random((96, 96, 3, 3), 4, 0.05), "o": random((8, 96, 1, 1), 5),
}  # fmt: skip
RECIPE = Recipe(target="cpu-x86", weights=Weights(Rtn()), equalize=False)
SIDE = 32


def net() -> ir.Model:
    """Thin depthwise layers, which are slow on codes, before dense ones, which are slow in float."""
    text = """net (float[N, 3, 32, 32] x) => (float[N, 8, H, W] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Relu (a)
        c = Conv <group = 16, pads = [2, 2, 2, 2]> (b, d)  h = Relu (c)
        f = Conv <group = 16, pads = [2, 2, 2, 2]> (h, e)  g = Relu (f)
        i = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (g, v)  j = Relu (i)
        k = Conv <pads = [1, 1, 1, 1]> (j, u)  l = Relu (k)
        y = Conv (l, o) }"""
    return model_from_text(text, ARRAYS)


def left(recipe: Recipe) -> set[str]:
    return set(quantize(net(), feeds(9, 3, SIDE, SIDE), recipe).report.left_float)


def test_what_is_slower_on_codes_stays_float() -> None:
    result = quantize(net(), feeds(9, 3, SIDE, SIDE), RECIPE)
    kept = {name for name, reason in result.report.left_float.items() if reason.startswith(FASTER)}
    assert kept == {"a", "c", "f"}
    assert {row.name for row in result.report.layers} == {"i", "k", "y"}
    assert all("weight on codes" in result.report.left_float[name] for name in kept)
    assert any("--optimize integers" in note for note in result.report.notes)
    whole = quantize(net(), feeds(9, 3, SIDE, SIDE), replace(RECIPE, optimize="integers"))
    assert not whole.report.left_float
    assert result.report.proof.comparison.sqnr_db > whole.report.proof.comparison.sqnr_db
    assert len(result.delivery.data or b"") < len(whole.delivery.data or b"")


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, target="cpu-arm"),  # nobody measured its kernels
        replace(RECIPE, weights=Weights(Rtn(), 4), accept_poor=True),  # float kernels would take bytes
        replace(RECIPE, activation_bits=6, accept_poor=True),
    ],
    ids=["unknown times", "short weights", "short activations"],
)
def test_otherwise_everything_is_integers(recipe: Recipe) -> None:
    assert not left(recipe)


def test_small_models_are_left_alone() -> None:
    text = "net (float[N, 3, 8, 8] x) => (float[N, 16, 8, 8] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Relu (a) }"
    result = quantize(model_from_text(text, ARRAYS), feeds(9, 3, 8, 8), RECIPE)
    assert not result.report.left_float


def test_results_are_the_same_twice() -> None:
    first, second = (quantize(net(), feeds(9, 3, SIDE, SIDE), RECIPE).delivery.data for _ in range(2))
    assert first == second


def test_a_pool_in_float_reads_and_writes_float() -> None:
    """onnxruntime would move its Q up and its DQ down past it, where its pooling of codes is slow."""
    text = """net (float[N, 3, 8, 8] x) => (float[N, 8, H, W] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
        b = Conv <pads = [1, 1, 1, 1]> (m, v)  y = Conv (b, o) }"""
    result = quantize(model_from_text(text, ARRAYS), feeds(9, 3, 8, 8), replace(RECIPE, exclude=("MaxPool",)))
    (pool,) = (node for node in result.delivery.model.graph if node.op_type == "MaxPool")
    assert pool.inputs[0] is not None
    around = [pool.inputs[0].producer(), *(use.node for use in pool.outputs[0].uses())]
    assert [node.op_type for node in around if node is not None] == ["Sum", "Sum"]


def test_work_is_counted() -> None:
    model = net()
    shapes = shapes_on(model, feeds(1, 3, SIDE, SIDE)[0])
    works = {name_of(node): work_of(node, shapes) for node in model.graph}
    places = SIDE * SIDE
    assert works["a"] == Work("dense", 16 * places, 16 * places * 27, 432, 9 * places, 0, 0)
    assert works["c"] == Work("depthwise", 16 * places, 16 * places * 25, 0, 25 * places, 0, 0)
    assert works["y"] == Work("dense", 16 * 256, 16 * 256 * 96, 768, 0, 256, 8 * 256)
    assert works["b"] == Work("Relu", 16 * places)


def test_a_relu_that_a_convolution_takes_in_costs_nothing() -> None:
    model = net()
    assert CPU_X86.costs is not None
    times = stated_times(model, shapes_on(model, feeds(1, 3, SIDE, SIDE)[0]), CPU_X86.costs)
    assert times.floats.get("b", 0.0) == 0.0
    assert times.integers["c"] > 2 * times.floats["c"] > 0.0
    assert times.integers["k"] < 0.5 * times.floats["k"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("a = Conv (x, w)  r = Relu (a)  y = MaxPool <kernel_shape = [2, 2]> (r)", "MaxPool"),
        ("a = Conv (x, w)  c = Concat <axis = 1> (a, a)  y = MaxPool <kernel_shape = [2, 2]> (c)", "MaxPool"),
        ("a = Conv (x, w)  h = HardSigmoid (a)  y = MaxPool <kernel_shape = [2, 2]> (h)", "MaxPool apart"),
        ("y = MaxPool <kernel_shape = [2, 2]> (x)", "MaxPool apart"),
    ],
)
def test_pooling_is_fast_where_channels_come_last(body: str, kind: str) -> None:
    model = model_from_text(f"net (float[N, 3, 8, 8] x) => (float y) {{ {body} }}", ARRAYS)
    pool = next(node for node in model.graph if node.op_type == "MaxPool")
    assert work_of(pool, shapes_on(model, feeds(1, 3, 8, 8)[0])).kind == kind


def test_shapes_that_nothing_tells_are_those_of_a_run() -> None:
    text = """net (float[N, 3, 8, 8] x) => (float y) {
        a = Relu (x)  n = NonZero (a)  f = Cast <to = 1> (n)  g = Relu (f)  c = Conv (a, w)  y = Relu (c) }"""
    feed, model = {"x": np.abs(feeds(1, 3, 8, 8)[0]["x"]) + 1}, model_from_text(text, ARRAYS)
    infer_statically(model)
    shapes = shapes_on(model, feed)
    assert shapes["g"] == (4, math.prod(feed["x"].shape))
    assert shapes["c"] == (1, 16, 6, 6)
    assert "n" not in shapes


def test_what_came_on_integers_stays_there() -> None:
    model = net()
    infer_statically(model)
    shapes, costs = shapes_on(model, feeds(1, 3, SIDE, SIDE)[0]), CPU_X86.costs
    assert costs is not None
    whole = place(model)
    grid = QuantParams(np.float32(1), np.uint8(0), QuantSpec())
    given = replace(whole, given={"a": grid})
    assert find_islands(model, lambda floats: place(model, floats=floats), shapes, costs).floats.keys() >= {"a", "c"}
    assert not find_islands(model, lambda _: given, shapes, costs).floats


def test_rates_are_summed() -> None:
    work = Work("dense", 1, 2, 3, 4, 5, 6)
    assert Rates(1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9).microseconds(work) == pytest.approx(6543211)


def test_inspecting_tells_what_quantizing_does() -> None:
    (feed,) = feeds(1, 3, SIDE, SIDE)
    found = inspect_model(net(), target="cpu-x86", data=[feed])
    assert set(found["left_float"]) >= {"a", "c", "f"}
    assert not set(found["left_float"]) & {"i", "k", "y"}


def test_a_model_whose_weights_are_too_small_for_codes_is_not_left_in_float() -> None:
    lines = "\n".join(f"t{i} = Tanh (c{i})  c{i + 1} = MatMul (t{i}, w)" for i in range(100))
    turn = np.linalg.qr(random((8, 8)))[0].astype(np.float32)
    model = model_from_text(
        f"net (float[N, 8] x) => (float[N, 8] y) {{ c0 = MatMul (x, w)\n{lines}\ny = Tanh (c100) }}", {"w": turn}
    )
    assert len(quantize(model, feeds(9, 8), replace(RECIPE, accept_poor=True)).report.layers) == 101
