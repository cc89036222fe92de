"""Powers of two against numeric integration, and on onnxruntime's integer kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.core.encoding import IntegerWeight
from ptq.core.problem import LayerProblem
from ptq.core.spec import INT8_WEIGHT, Granularity, PerAxis, PerBlock, PerTensor
from ptq.core.storage import Alphabet
from ptq.passes.lifting import weights_of
from ptq.recipe import Weights
from ptq.weights import Pot, Rtn
from tests.builders import attention, conv_net, feeds
from tests.golden.scenarios import chain, streamed


def solved(weight: np.ndarray, bits: int, granularity: Granularity | None = None) -> IntegerWeight:
    spec = replace(INT8_WEIGHT, num_bits=bits, narrow_range=bits > 7, granularity=granularity or PerAxis(0))
    found = Pot().quantize(LayerProblem("layer", weight.astype(np.float32), spec))
    assert isinstance(found, IntegerWeight)
    return found


def least_error(bits: int) -> tuple[float, float]:
    """Relative squared error of the best base-2 levels for N(0, 1), and its c: both by brute force on a fine grid."""
    x = np.linspace(-8, 8, 8001)
    density = np.exp(-np.square(x) / 2)
    density /= density.sum()
    powers = 0.5 ** np.arange((1 << (bits - 1)) - 1)
    found = (np.inf, 0.0)
    for c in np.linspace(0.5, 4, 176):
        levels = np.concatenate([[0], c * powers])
        nearest = np.abs(np.abs(x)[:, None] - levels).min(1)
        found = min(found, (float(np.square(nearest) @ density), float(c)))
    return found


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_largest_level_is_the_best_one_for_a_gaussian(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((2, 60_000))
    found = solved(weight, bits)
    error, c = least_error(bits)
    relative = np.square(found.decode() - weight).sum(1) / np.square(weight).sum(1)
    np.testing.assert_allclose(relative, error, rtol=0.02)
    if bits < 4:  # seven powers span so much that an octave more or less costs nothing
        np.testing.assert_allclose(found.scale * 64, c, rtol=0.05)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerBlock(1, 16)])
def test_levels_are_exact_powers_of_two_and_words_hold_them(bits: int, granularity: Granularity) -> None:
    found = solved(np.random.default_rng(bits).standard_t(3, (12, 40)), bits, granularity)
    sizes = np.unique(np.abs(found.codes.astype(int)))
    assert all(size == 0 or size & (size - 1) == 0 for size in sizes.tolist())
    assert found.num_bits == min(bits, 4)
    assert isinstance(found.storage, Alphabet)
    assert len(found.storage.levels) == (1 << found.num_bits) - 1
    assert not found.params.zero_point.any()


def test_three_bits_beat_rounding_and_all_zeros_stay() -> None:
    """Base-2 levels earn their place where words are short; rows of one value come out as they are."""
    weight = np.random.default_rng(0).standard_normal((8, 576)).astype(np.float32)
    spec = replace(INT8_WEIGHT, num_bits=3, narrow_range=False, granularity=PerAxis(0))
    plain = Rtn().quantize(LayerProblem("layer", weight, spec)).decode()
    assert np.square(solved(weight, 3).decode() - weight).sum() < 0.6 * np.square(plain - weight).sum()
    flat = np.repeat(np.array([[0.0], [0.3], [-7.0]]), 20, 1)
    np.testing.assert_allclose(solved(flat, 3).decode(), flat, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("target", ["cpu-x86", "portable", "native"])
def test_onnxruntime_runs_them_on_its_integer_kernels(bits: int, target: str) -> None:
    result = quantize(conv_net(), feeds(24, 3, 16, 16), Recipe(target, weights=Weights(Pot(), bits)))
    kernels = result.report.proof.kernels
    assert not kernels.fallbacks
    assert kernels.num_linear == len(result.report.layers)
    assert {row.num_bits for row in result.report.layers} == {min(bits, 4)}
    for weight in weights_of(result.delivery.model).values():
        assert isinstance(weight, IntegerWeight)
        assert set(np.abs(weight.codes.astype(int)).reshape(-1)) <= {0, *(1 << np.arange(7)).tolist()}
    if target == "cpu-x86":
        assert kernels.integer["QLinearConv"] == 3
        assert kernels.integer["QGemm"] == 1


def test_streamed_models_hold_them_too() -> None:
    result = streamed(chain(), feeds(4, 64), Recipe("cpu-x86", weight_only=True, weights=Weights(Pot(), 3)))
    with result.delivery.as_file() as path:
        lifted = weights_of(ir.load(path))
    assert sorted(lifted) == ["a", "b"]
    for weight in lifted.values():
        assert isinstance(weight, IntegerWeight)
        assert weight.scale.ndim == 2
        assert set(np.abs(weight.codes.astype(int)).reshape(-1)) <= {0, 16, 32, 64}
    assert {row.num_bits for row in result.report.layers} == {3}


@pytest.mark.parametrize("bits", [2, 4])
def test_native_kernels_read_the_levels_from_a_table(bits: int) -> None:
    result = quantize(attention(), feeds(24, 7, 16), Recipe("native", weights=Weights(Pot(), bits), accept_poor=True))
    products = [node for node in result.delivery.model.graph if node.domain == "ai.ptq"]
    assert len(products) == len(result.report.layers)
    for node in products:
        assert node.attributes.get_int("bits") == bits
        table = next(value for value in node.inputs if value is not None and str(value.name).endswith("_table"))
        assert table.const_value is not None
        assert set(np.abs(table.const_value.numpy().astype(int))) <= {0, *(1 << np.arange(7)).tolist()}
    plain = quantize(attention(), feeds(24, 7, 16), Recipe("cpu-x86", weights=Weights(Pot(), bits), accept_poor=True))
    found, expected = (each.report.proof.comparison.sqnr_db for each in (result, plain))
    assert found == pytest.approx(expected, abs=1.5)
