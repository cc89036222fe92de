"""Operators of domain ai.ptq: their kernels against the standard operators that each carries as its body."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Recipe, quantize, runtime
from ptq.passes.linear import has_native_kernel
from ptq.recipe import Weights
from ptq.runtime import native_path, native_status, open_session
from ptq.target import host_target
from tests.builders import feeds, model_from_text, native_conv, random

LIBRARY = native_path()
needs_library = pytest.mark.skipif(LIBRARY is None, reason=native_status())
CASES = int(os.environ.get("PTQ_CASES", "400"))
VARIANTS = ["avx512vnni", "avxvnni", "avx2"] if platform.machine() in ("x86_64", "AMD64") else ["neon"]
"""Asked for by name; what this processor lacks falls back to what it has, and is compared all the same."""


def kernel_of(data: bytes, x: Any, threads: int = 1) -> Any:
    """The output of an operator's kernel."""
    return open_session(data, custom_ops=(str(LIBRARY),), num_threads=threads).run(None, {"x": x})[0]


def test_the_library_is_there_where_it_has_to_be() -> None:
    if os.environ.get("PTQ_REQUIRE_NATIVE"):
        assert LIBRARY is not None, native_status()
    assert native_status()


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """Convolutions of images, depthwise, in groups, dense; some that no fast kernel takes."""
    kind = draw(st.sampled_from(["image", "depthwise", "groups", "dense"]))
    if kind == "image":
        groups, channels, features = 1, draw(st.integers(1, 5)), draw(st.integers(1, 40))
    elif kind == "dense":
        groups, channels, features = 1, draw(st.sampled_from([4, 8, 12, 20, 36])), draw(st.integers(1, 70))
    elif kind == "depthwise":
        groups, channels, features = draw(st.integers(1, 150)), 1, 1
    else:
        groups, channels, features = (
            draw(st.integers(1, 9)),
            draw(st.sampled_from([1, 2, 4, 8, 12, 16])),
            draw(st.integers(1, 18)),
        )
    pair = lambda low, high: [draw(st.integers(low, high)), draw(st.integers(low, high))]  # noqa: E731
    kernel, dilations, pads = pair(1, 7), pair(1, 2), pair(0, 3) + pair(0, 3)
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    return {
        "group": groups,
        "shape": [groups * features, channels, *kernel],
        "strides": pair(1, 3),
        "dilations": dilations,
        "pads": pads,
        "input": [draw(st.integers(1, 2)), reach[0] + draw(st.integers(0, 9)), reach[1] + draw(st.integers(0, 30))],
        "seed": draw(st.integers(0, 1 << 30)),
        "bias": draw(st.booleans()),
    }


@needs_library
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", ["ref", *VARIANTS])
def test_kernels_equal_the_body(kernels: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTQ_KERNELS", kernels)

    @settings(max_examples=CASES // 8, deadline=None, derandomize=threads == 1)
    @given(layers())
    def check(layer: dict[str, Any]) -> None:
        data, x = native_conv(layer)
        (expected,) = open_session(data).run(None, {"x": x})
        (found,) = open_session(data, custom_ops=(str(LIBRARY),), num_threads=threads).run(None, {"x": x})
        np.testing.assert_array_equal(found, expected)

    check()


@needs_library
def test_two_parts_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels alike, within a step of the float convolution, and the body within what its own grids round away."""

    @settings(max_examples=CASES // 8, deadline=None)
    @given(layers())
    def check(layer: dict[str, Any]) -> None:
        kernel = [size | 1 for size in layer["shape"][2:]]
        reach = [rate * (size // 2) for rate, size in zip(layer["dilations"], kernel, strict=True)]
        layer |= {"shape": [*layer["shape"][:2], *kernel], "pads": [*reach, *reach], "center": True}
        data, x = native_conv(layer)
        monkeypatch.setenv("PTQ_KERNELS", "ref")
        found = kernel_of(data, x)
        for name in VARIANTS:
            monkeypatch.setenv("PTQ_KERNELS", name)
            np.testing.assert_array_equal(kernel_of(data, x, threads=2), found, err_msg=name)
        codes, coarsest = float_codes(layer, data, x)
        assert np.abs(found - codes).max() <= 1
        (body,) = open_session(data).run(None, {"x": x})
        assert np.abs(body - codes).max() <= coarsest + 1.5

    check()


def float_codes(layer: dict[str, Any], data: bytes, x: Any) -> tuple[Any, float]:
    """Codes of the float convolution that an operator stands for, and the steps of its parts in its own."""
    model = onnx.load_from_string(data)
    c = {each.name: onnx.numpy_helper.to_array(each).astype(np.float64) for each in model.graph.initializer}
    per_feature = (-1, 1, 1, 1)
    weight = c["w"] * c["w_scale"].reshape(per_feature)
    middle = (..., *(size // 2 for size in weight.shape[2:]))
    weight[middle] += c["center"][..., 0, 0] * c["center_scale"][:, None]
    bias = c["B"] * c["w_scale"] + c["center_B"] * c["center_scale"]
    given = ", ".join(f"{key} = {layer[key]}" for key in ("group", "strides", "pads", "dilations"))
    text = f"m (float[N, {x.shape[-1]}, H, W] x) => (float[N, M, P, Q] y) {{ y = Conv <{given}> (x, w, b) }}"
    weights = {"w": weight.astype(np.float32), "b": bias.astype(np.float32)}
    session = open_session(ir.to_proto(model_from_text(text, weights)).SerializeToString())
    real = (x.astype(np.float32) - np.float32(c["x_zero_point"])).transpose(0, 3, 1, 2)
    steps = session.run(None, {"x": real})[0].transpose(0, 2, 3, 1) * c["x_scale"] / c["y_scale"]
    return np.clip(np.rint(steps) + c["y_zero_point"], 0, 255), (c["fine_scale"] + c["coarse_scale"]) / 2 / c["y_scale"]


LAYER = {
    "group": 8, "shape": [8, 1, 3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1],
    "input": [1, 6, 6], "seed": 0, "bias": True,
}  # fmt: skip


@needs_library
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"strides": [0, 1]}, "strides"),
        ({"strides": [1]}, "strides has 1 values"),
        ({"pads": [1, 1, 1, -4]}, "pads"),
        ({"group": 3}, "3 groups"),
        ({"group": 0}, "0 groups"),
        ({"dilations": [1 << 40, 1]}, "out of range"),
        ({"arrays": {"w": np.ones((8, 9), np.int8)}}, "w is not"),
        ({"arrays": {"w_scale": np.ones(5, np.float32)}}, "w_scale has 5"),
        ({"arrays": {"x_scale": np.ones(2, np.float32)}}, "x_scale has 2"),
        ({"arrays": {"y_scale": np.float32(0)}}, "not positive"),
        ({"arrays": {"x_scale": np.float32("nan")}}, "not positive"),
        ({"arrays": {"w_scale": np.full(8, np.inf, np.float32)}}, "not positive and finite"),
        ({"arrays": {"x_scale": np.float32(1e38), "w_scale": np.full(8, 1e38, np.float32)}}, "too far apart"),
        ({"arrays": {"B": np.ones(3, np.int32)}}, "B has not"),
    ],
)
def test_what_is_wrong_is_refused_by_name(changes: dict[str, Any], word: str) -> None:
    data, _ = native_conv(LAYER, **changes)
    with pytest.raises(Exception, match=f"(?s)conv7.*{word}"):
        open_session(data, custom_ops=(str(LIBRARY),))


@needs_library
@pytest.mark.parametrize("shape", [(1, 6, 6, 7), (1, 0, 6, 8), (1, 6, 8)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    data, _ = native_conv(LAYER | {"pads": [0, 0, 0, 0]})
    model = onnx.load_from_string(data)
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    session = open_session(model.SerializeToString(), custom_ops=(str(LIBRARY),))
    with pytest.raises(Exception, match=r"conv7|Invalid rank"):
        session.run(None, {"x": np.zeros(shape, np.uint8)})


def mobile() -> ir.Model:
    """Stem, depthwise, pointwise, groups of four."""
    text = """
    m (float[N, 3, 16, 16] x) => (float[N, 5] y) {
        a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
        r = Relu (a)
        c = Conv <pads = [1, 1, 1, 1], group = 24> (r, w1, b0)
        s = Clip (c, zero, six)
        d = Conv (s, w2, b1)
        t = Relu (d)
        e = Conv <pads = [1, 1, 1, 1], group = 8> (t, w3, b1)
        u = Relu (e)
        g = GlobalAveragePool (u)
        f = Flatten (g)
        y = Gemm <transB = 1> (f, w4)
    }"""
    weights = {
        "w0": random((24, 3, 3, 3), 1), "b0": random((24,), 2), "w1": random((24, 1, 3, 3), 3),
        "w2": random((32, 24, 1, 1), 4), "b1": random((32,), 5), "w3": random((32, 4, 3, 3), 6),
        "w4": random((5, 32), 7), "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    return model_from_text(text, weights)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_file_runs_with_and_without_the_library(bits: int, tmp_path: Path) -> None:
    data = feeds(48, 3, 16, 16)
    result = quantize(mobile(), data, Recipe(target="native", weights=Weights(bits=bits)))
    operators = [node.op_type for node in result.delivery.model.graph]
    assert operators.count("NhwcQLinearConv") == 3
    assert "Clip" not in operators
    path = tmp_path / "q.onnx"
    result.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    plain = open_session(path).run(None, dict(data[0]))
    assert result.report.proof.kernels.num_linear == 5
    if LIBRARY is not None:
        assert result.report.proof.kernels.integer["NhwcQLinearConv"] == 3
        np.testing.assert_array_equal(runtime.session(path).run(None, dict(data[0]))[0], plain[0])


@pytest.mark.parametrize(
    ("channels", "per_group", "fits"), [(4, 4, True), (8, 8, True), (16, 16, True), (32, 8, False), (64, 16, False)]
)
def test_groups_are_taken_where_every_vector_unit_has_a_kernel(channels: int, per_group: int, fits: bool) -> None:
    """Four lanes hold sixteen channels: wider groups would run the specification there."""
    text = f"""
    m (float[N, {4 * channels}, 8, 8] x) => (float[N, {4 * per_group}, 6, 6] y) {{
        y = Conv <group = 4> (x, w)
    }}"""
    model = model_from_text(text, {"w": random((4 * per_group, channels, 3, 3))})
    assert has_native_kernel(model.graph[0]) is fits


def test_coarse_and_fine_run_in_one_pass(tmp_path: Path) -> None:
    text = """
    m (float[N, 8, 12, 12] x) => (float[N, 8, 12, 12] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
        r = Relu (a)
        y = Conv <pads = [1, 1, 1, 1]> (r, w1, b0)
    }"""
    wide = random((8, 8, 3, 3), 2, 0.05)
    wide[:, :, 1, 1] += 2 * np.eye(8, dtype=np.float32)
    model = model_from_text(text, {"w0": wide, "w1": wide[::-1].copy(), "b0": random((8,), 3)})
    data = feeds(32, 8, 12, 12)
    recipe = Recipe(target="native", weights=Weights(split="center"))
    result = quantize(model, data, recipe)
    operators = [node.op_type for node in result.delivery.model.graph]
    assert operators.count("NhwcQLinearConvWithCenter") == 2
    assert not {"Conv", "Add"} & set(operators)
    path = tmp_path / "q.onnx"
    result.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    (plain,) = open_session(path).run(None, dict(data[0]))
    standard = quantize(model, data, Recipe(target=host_target().name, weights=recipe.weights)).session()
    np.testing.assert_array_equal(plain, standard.run(None, dict(data[0]))[0])
    if LIBRARY is not None:
        (once,) = runtime.session(path).run(None, dict(data[0]))
        (real,) = open_session(ir.to_proto(model).SerializeToString()).run(None, dict(data[0]))
        assert np.square(once - real).sum() < np.square(plain - real).sum()


def test_the_session_says_what_it_chose(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    quantize(mobile(), feeds(16, 3, 16, 16)).save(path)
    with caplog.at_level(logging.INFO, "ptq.runtime"):
        runtime.session(path, num_threads=1)
    assert native_status() in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"no library"])
def test_without_a_library_standard_operators_run(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ops.so"
    if content:
        path.write_bytes(content)
    monkeypatch.setenv("PTQ_NATIVE_LIBRARY", "" if content is None else str(path))
    native_path.cache_clear()
    try:
        assert native_path() is None
        assert native_status().endswith("standard operators run")
        result = quantize(mobile(), feeds(16, 3, 16, 16), Recipe(target="native"))
        assert result.report.proof.kernels.num_linear == 5
    finally:
        monkeypatch.undo()
        native_path.cache_clear()
