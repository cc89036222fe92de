"""im2col against onnxruntime's convolution: rows times the weight matrix is the layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ptq.core.layer_statistics import LayerStatistics, output_error
from ptq.passes._linear import LinearLayer, describe_linear
from ptq.runtime import open_session
from tests.builders import model_from_text, random


def convolution(attributes: str, shape: tuple[int, ...], weight: NDArray[np.float32]) -> tuple[LinearLayer, ir.Model]:
    extents = ", ".join(["N", *(str(n) for n in shape)])
    outputs = ", ".join(f"D{i}" for i in range(len(shape) + 1))
    text = f"net (float[{extents}] x) => (float[{outputs}] y) {{ y = Conv {attributes} (x, w) }}"
    model = model_from_text(text, {"w": weight})
    layer = describe_linear(model.graph[0])
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
    layer, model = convolution(attributes, shape, random(weight))
    x = random((2, *shape), 3)
    (expected,) = open_session(ir.to_proto(model).SerializeToString(), optimization="none").run(None, {"x": x})
    rows = layer.unfold.rows(x)
    matrix = layer.layout.to_matrix(random(weight)).reshape(layer.unfold.groups, -1, rows.shape[2])
    found = np.matmul(rows, matrix.transpose(0, 2, 1))  # [groups, positions, out / groups]
    channels = found.transpose(0, 2, 1).reshape(weight[0], 2, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(channels.reshape(expected.shape), expected, atol=1e-4)


def test_output_error_is_the_energy_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    rows, error = rng.standard_normal((2, 50, 7)), rng.standard_normal((2, 4, 7))
    direct = np.square(np.matmul(rows, error.transpose(0, 2, 1))).sum(1)
    np.testing.assert_allclose(output_error(error, LayerStatistics.of(rows).gram), direct, rtol=1e-10)


def test_any_split_gives_the_same_statistics() -> None:
    rows = np.random.default_rng(0).standard_normal((1, 60, 5))
    whole = LayerStatistics.of(rows)
    parts = LayerStatistics.of(rows[:, :13]).merge(LayerStatistics.of(rows[:, 13:]))
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-12)
    assert parts.count == whole.count == 60
