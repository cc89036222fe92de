"""Properties of the only rounding in the house."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq.core.affine import Range, choose_qparams, dequantize, fake_quantize, quantize
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.runtime import open_session
from ptq.weights import Rtn
from tests.builders import model_from_text

specs = st.builds(
    QuantSpec,
    num_bits=st.integers(2, 8),
    signed=st.just(True),
    symmetric=st.booleans(),
    narrow_range=st.booleans(),
) | st.builds(QuantSpec, num_bits=st.integers(2, 8), symmetric=st.booleans())
moderate = st.floats(-1e6, 1e6, width=32)


@given(specs, moderate, moderate, hnp.arrays(np.float32, 20, elements=moderate))
def test_error_inside_the_range_is_half_a_step(spec: QuantSpec, a: float, b: float, values: np.ndarray) -> None:
    limits = Range.of(min(a, b), max(a, b))
    params = choose_qparams(limits, spec)
    scale, zero = float(params.scale), float(params.zero_point)
    low, high = (spec.qmin - zero) * scale, (spec.qmax - zero) * scale
    inside = values[(values >= low) & (values <= high)]
    error = np.abs(fake_quantize(inside, params) - inside)
    assert (error <= scale * 0.5 * (1 + 1e-5) + np.abs(inside) * 1e-6).all()


@given(specs, moderate, moderate, hnp.arrays(np.float32, 20, elements=moderate))
def test_fake_quantize_is_idempotent_and_keeps_zero(spec: QuantSpec, a: float, b: float, values: np.ndarray) -> None:
    params = choose_qparams(Range.of(min(a, b), max(a, b)), spec)
    once = fake_quantize(values, params)
    np.testing.assert_array_equal(fake_quantize(once, params), once)
    assert fake_quantize(np.zeros(1, np.float32), params)[0] == 0
    codes = quantize(values, params)
    assert spec.qmin <= codes.min()
    assert codes.max() <= spec.qmax
    assert params.scale > 0


@given(moderate.filter(lambda v: v > 1e-3), hnp.arrays(np.float32, 50, elements=moderate))
def test_codes_equal_those_of_the_runtime(reach: float, values: np.ndarray) -> None:
    params = choose_qparams(Range.of(-reach / 3, reach), QuantSpec())
    text = "net (float[N] x) => (uint8[N] y) { y = QuantizeLinear (x, s, z) }"
    import onnx_ir as ir

    model = model_from_text(text, {"s": params.scale, "z": params.zero_point})
    session = open_session(ir.to_proto(model).SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], quantize(values, params))


@pytest.mark.parametrize(
    ("granularity", "shape"), [(PerTensor(), ()), (PerAxis(0), (4,)), (PerAxis(1), (6,)), (PerBlock(1, 4), (4, 2))]
)
def test_granularities_share_scales_as_they_say(granularity: PerTensor, shape: tuple[int, ...]) -> None:
    scale = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    spec = QuantSpec(signed=True, symmetric=True, granularity=granularity)
    params = choose_qparams(Range.of(-scale * 127, scale * 127), spec)
    values = np.full((4, 6), 10.0, np.float32)
    np.testing.assert_allclose(dequantize(quantize(values, params), params), values, atol=float(scale.max()) / 2)


@pytest.mark.parametrize("num_bits", [0, 1, 9, 16])
def test_word_lengths_without_a_grid_are_refused(num_bits: int) -> None:
    with pytest.raises(ValueError, match="num_bits"):
        QuantSpec(num_bits=num_bits)


def test_long_codes_reach_both_ends_exactly() -> None:
    params = choose_qparams(Range.of(-1.0, 1.0), QuantSpec(num_bits=32, signed=True, symmetric=True))
    params = replace(params, scale=np.float32(1))
    values = np.array([-(2.0**31), 2.0**31 - 1, 2.0**24 + 1, 1e12])
    np.testing.assert_array_equal(quantize(values, params), [-(2**31), 2**31 - 1, 2**24 + 1, 2**31 - 1])


@given(st.integers(0, 1000), st.booleans())
def test_zeros_are_weights_not_codes(seed: int, symmetric: bool) -> None:
    weight = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32) + 0.7
    weight[:, ::2] = 0.0
    spec = QuantSpec(4, signed=True, symmetric=symmetric, granularity=PerBlock(1, 32))
    encoding = Rtn().quantize(LayerProblem("", weight, spec))
    assert encoding.zeros() == np.count_nonzero(encoding.decode() == 0)
    assert encoding.zeros() >= weight.size // 2
