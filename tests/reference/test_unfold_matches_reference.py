"""im2col against onnxruntime's convolution: rows times the weight matrix is the layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ptq.core.layer import LinearLayer
from ptq.core.layer_statistics import LayerStatistics, MomentSum, output_error
from ptq.passes.linear import describe_linear
from ptq.runtime import open_session
from tests.builders import model_from_text, random


def convolution(
    attributes: str, shape: tuple[int, ...], weight: NDArray[np.float32], op_type: str = "Conv"
) -> tuple[LinearLayer, ir.Model]:
    extents = ", ".join(["N", *(str(n) for n in shape)])
    outputs = ", ".join(f"D{i}" for i in range(len(shape) + 1))
    text = f"net (float[{extents}] x) => (float[{outputs}] y) {{ y = {op_type} {attributes} (x, w) }}"
    model = model_from_text(text, {"w": weight})
    layer = describe_linear(model.graph[0], integer=False)
    assert isinstance(layer, LinearLayer)
    return layer, model


@pytest.mark.parametrize(
    ("attributes", "shape", "weight"),
    [
        ("", (3, 8, 8), (4, 3, 3, 3)),
        ("<strides = [2, 1], pads = [1, 0, 2, 1]>", (3, 9, 8), (4, 3, 3, 2)),
        ("<dilations = [2, 2], pads = [2, 2, 2, 2]>", (3, 9, 9), (4, 3, 3, 3)),
        ("<group = 2>", (32, 8, 8), (6, 16, 3, 3)),
        ("<group = 6, pads = [1, 1, 1, 1]>", (6, 8, 8), (6, 1, 3, 3)),
        ("<auto_pad = \"SAME_UPPER\", strides = [2, 2]>", (3, 8, 9), (4, 3, 3, 3)),
        ("<auto_pad = \"SAME_LOWER\", strides = [2, 2]>", (3, 8, 9), (4, 3, 3, 3)),
        ("<auto_pad = \"VALID\">", (3, 8, 8), (4, 3, 1, 3)),
        ("<strides = [3], pads = [1, 2]>", (3, 20), (4, 3, 5)),
        ("<pads = [1, 1, 1, 1, 1, 1]>", (2, 5, 4, 6), (4, 2, 3, 3, 3)),
    ],
)  # fmt: skip
def test_rows_times_the_matrix_is_the_convolution(
    attributes: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    require_same_as_runtime("Conv", attributes, shape, weight)


@pytest.mark.parametrize(
    ("attributes", "shape", "weight"),
    [
        ("", (3, 5, 6), (3, 4, 3, 3)),
        ("<strides = [2, 3], pads = [1, 0, 2, 1]>", (3, 5, 6), (3, 4, 3, 2)),
        ("<strides = [2, 2], output_padding = [1, 1], pads = [1, 1, 1, 1]>", (3, 5, 6), (3, 4, 3, 3)),
        ("<dilations = [2, 2]>", (3, 5, 5), (3, 4, 3, 3)),
        ("<strides = [2], pads = [3, 2]>", (3, 9), (3, 4, 3)),
        ("<strides = [2, 2, 2]>", (2, 3, 4, 3), (2, 3, 2, 2, 2)),
    ],
)  # fmt: skip
def test_rows_times_the_matrix_is_the_transposed_convolution(
    attributes: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    require_same_as_runtime("ConvTranspose", attributes, shape, weight)


@pytest.mark.parametrize(("text", "shape"), [("MatMul (w, x)", (2, 8, 5)), ("MatMul (x, w)", (2, 5, 8))])
def test_rows_meet_the_weight_on_either_side(text: str, shape: tuple[int, ...]) -> None:
    weight, x = random((8, 8)), random(shape, 3)
    model = model_from_text(f"net (float[N, A, B] x) => (float[N, C, D] y) {{ y = {text} }}", {"w": weight})
    layer = describe_linear(model.graph[0], integer=False)
    assert isinstance(layer, LinearLayer)
    (expected,) = open_session(ir.to_proto(model).SerializeToString(), optimization="none").run(None, {"x": x})
    found = layer.unfold.rows(x)[0] @ layer.layout.to_matrix(weight).T
    expected = np.swapaxes(expected, -1, -2) if layer.unfold.columns else expected
    np.testing.assert_allclose(found, expected.reshape(-1, 8), atol=1e-5)


def require_same_as_runtime(op_type: str, attributes: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> None:
    layer, model = convolution(attributes, shape, random(weight), op_type)
    x = random((2, *shape), 3)
    (expected,) = open_session(ir.to_proto(model).SerializeToString(), optimization="none").run(None, {"x": x})
    rows = layer.unfold.rows(x)
    matrix = layer.layout.to_matrix(random(weight)).reshape(layer.unfold.groups, -1, rows.shape[2])
    found = np.matmul(rows, matrix.transpose(0, 2, 1))  # [groups, positions, out / groups]
    channels = found.transpose(0, 2, 1).reshape(expected.shape[1], 2, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(channels.reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 9, 10), (5, 3, 4, 4), (1, 3, 33, 32)])
def test_a_limit_picks_distinct_rows_spread_over_samples_and_columns(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    layer, _ = convolution("<pads = [1, 1, 1, 1]>", shape[1:], random((4, 3, 3, 3)))
    every, limit = layer.unfold.rows(values)[0], shape[0] * shape[2] * shape[3] // 3
    picked = layer.unfold.rows(values, limit)[0]
    assert {row.tobytes() for row in picked} < {row.tobytes() for row in every}
    assert len({row.tobytes() for row in picked}) == limit
    centre = picked[:, 4].astype(int)  # the value under the kernel's centre tells where a row was taken
    sample, column = centre // np.prod(shape[1:]), centre % shape[3]
    assert np.bincount(sample, minlength=shape[0]).min() >= limit // shape[0] - 2
    assert np.bincount(column, minlength=shape[3]).min() >= limit // shape[3] // 2


def moments(seed: int, positions: int = 60) -> tuple[NDArray[np.float64], ...]:
    rng = np.random.default_rng(seed)
    original = rng.standard_normal((2, positions, 7)) + 1
    return original + 0.1 * rng.standard_normal(original.shape), original, rng.standard_normal((8, 7))


def outputs(rows: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.matmul(rows, weight.reshape(2, 4, 7).transpose(0, 2, 1))


def test_output_error_is_the_energy_of_the_difference() -> None:
    rows, _, error = moments(0)
    direct = np.square(outputs(rows, error)).sum(1)
    seen = LayerStatistics.of(rows, error)
    np.testing.assert_allclose(output_error(error.reshape(2, 4, 7), seen.gram), direct, rtol=1e-10)


def test_relative_error_is_that_of_the_rows() -> None:
    rows, original, weight = moments(0)
    quantized = weight + 0.3
    seen = LayerStatistics.of(rows, weight, original)
    truth, found = outputs(original, weight), outputs(rows, quantized)
    expected = np.square(found - truth).sum() / np.square(truth).sum()
    assert seen.relative_error(quantized, seen.target_correlation(weight)) == pytest.approx(expected, rel=1e-9)
    centred = np.square((found - truth) - (found - truth).mean(1, keepdims=True)).sum()
    energy = np.square(truth - truth.mean(1, keepdims=True)).sum()
    about = seen.centered(weight)
    assert about.relative_error(quantized, about.target_correlation(weight)) == pytest.approx(
        centred / energy, rel=1e-9
    )


@pytest.mark.parametrize("matched", [True, False])
def test_any_split_gives_the_same_statistics(matched: bool) -> None:
    rows, original, weight = moments(0)
    other = None if matched else original
    whole = LayerStatistics.of(rows, weight, other)
    first, second = (
        LayerStatistics.of(rows[:, part], weight, None if other is None else other[:, part])
        for part in (slice(13), slice(13, None))
    )
    merged, total = first.merge(second), MomentSum()
    assert merged.matched is whole.matched is matched
    for part in (first, second):
        total.add(part)
    for field in ("gram", "cross", "total", "float_total", "energy", "count"):
        np.testing.assert_allclose(getattr(merged, field), getattr(whole, field), rtol=1e-12)
        np.testing.assert_array_equal(getattr(total.value(), field), getattr(merged, field))
    assert total.value().matched is matched
