"""Weights as bytes: every form of storage comes back, and is as long as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ptq.codecs.bitplanes import pack, unpack
from ptq.codecs.weights import pack_words, unpack_places, unpack_words
from ptq.core.affine import QuantParams
from ptq.core.encoding import IntegerWeight, LookupWeight
from ptq.core.spec import INT8_WEIGHT, PerAxis, QuantSpec
from ptq.core.storage import Alphabet, Words
from ptq.core.widths import Widths

LENGTHS = range(1, 9)


def limits(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def codes_of(bits: int) -> st.SearchStrategy[NDArray[Any]]:
    low, high = limits(bits)
    shapes = arrays.array_shapes(max_dims=5, max_side=5)
    return arrays.arrays(np.int8, shapes, elements=st.integers(low, high))


@given(st.data(), st.sampled_from(LENGTHS))
def test_packing_loses_nothing(data: st.DataObject, bits: int) -> None:
    codes = data.draw(codes_of(bits))
    packed = pack(codes, bits)
    np.testing.assert_array_equal(unpack(packed, bits, codes.size), codes.reshape(-1))
    assert len(packed) <= codes.size * bits / 8 + 3  # each of at most three planes ends with its own padding


@pytest.mark.parametrize("bits", LENGTHS)
def test_every_code_survives(bits: int) -> None:
    low, high = limits(bits)
    codes = np.arange(low, high + 1).astype(np.int8).repeat(8)
    packed = pack(codes, bits)
    assert len(packed) == codes.size * bits // 8
    np.testing.assert_array_equal(unpack(packed, bits, codes.size), codes)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("side", [0, 1])
def test_codes_that_do_not_fit_are_refused(bits: int, side: int) -> None:
    beyond = limits(bits)[side] + (1 if side else -1)
    with pytest.raises(ValueError, match=f"do not fit into {bits} bits"):
        pack(np.array([0, beyond], np.int8), bits)


@pytest.mark.parametrize("bits", [-1, 0, 9])
def test_other_word_lengths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="are not packed"):
        pack(np.zeros(8, np.int8), bits)


def grid(rows: int, bits: int = 8) -> QuantParams:
    spec = QuantSpec(max(bits, 2), signed=True, symmetric=True, granularity=PerAxis(0))
    return QuantParams(np.linspace(0.1, 0.5, rows, dtype=np.float32), np.zeros(rows, np.int8), spec)


@st.composite
def weights(draw: st.DrawFn) -> IntegerWeight:
    """Any weight of integers in any form of storage."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    form = draw(st.sampled_from(["words", "rows", "both", "alphabet"]))
    if form == "words":
        bits = draw(st.integers(2, 8))
        return IntegerWeight.of(
            rng.integers(*limits(bits), (rows, columns), endpoint=True).astype(np.int8), grid(rows, bits)
        )
    if form == "alphabet":
        count = draw(st.integers(1, 256))
        levels = np.sort(rng.permutation(np.arange(-128, 128))[:count]).astype(np.int8)
        return IntegerWeight(rng.choice(levels, (rows, columns)), grid(rows), Alphabet(levels))
    widths = Widths(
        rng.integers(0, 9, rows).astype(np.int8), rng.integers(0, 9 if form == "both" else 1, columns).astype(np.int8)
    )
    low, high = widths.limits()
    return IntegerWeight.of(rng.integers(low.astype(int), high.astype(int) + 1).astype(np.int8), grid(rows), widths)


@given(weights())
def test_every_form_of_storage_comes_back_and_is_as_long_as_it_says(weight: IntegerWeight) -> None:
    packed = pack_words(weight)
    np.testing.assert_array_equal(unpack_words(packed, weight.storage, weight.shape), weight.codes)
    stored = 8 * sum(len(words) for words in packed.values())
    alphabet = 8 * len(weight.storage.levels) if isinstance(weight.storage, Alphabet) else 0
    promised = weight.size_in_bits() - 32 * weight.scale.size - alphabet
    assert promised <= stored <= promised + 24 * len(packed)


@given(st.integers(1, 256), st.integers(0, 1 << 20))
def test_tables_come_back_and_are_as_long_as_they_say(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.sort(rng.standard_normal(count)).astype(np.float32)
    weight = LookupWeight(rng.integers(0, count, (5, 7)).astype(np.uint8), table)
    packed = pack_words(weight)
    np.testing.assert_array_equal(unpack_places(packed, count, weight.shape), weight.indices)
    promised = weight.size_in_bits() - 32 * count
    assert promised <= 8 * sum(len(words) for words in packed.values()) <= promised + 24


@pytest.mark.parametrize("levels", [[], [1, 1], [3, 2], [*range(-128, 128), 0]])
def test_alphabets_ascend_and_fit_a_byte(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 256, ascending"):
        Alphabet(np.array(levels, np.int8))


@given(weights())
def test_what_is_nearest_to_a_weight_is_the_weight_itself(weight: IntegerWeight) -> None:
    np.testing.assert_array_equal(weight.nearest(weight.decode().astype(np.float64)).codes, weight.codes)


@given(weights(), st.integers(0, 1 << 20))
def test_nothing_on_the_grid_is_nearer(weight: IntegerWeight, seed: int) -> None:
    """The obvious twin: all levels of every weight are looked at."""
    real = (np.random.default_rng(seed).standard_normal(weight.shape) * 4).astype(np.float32)
    found = np.abs(weight.nearest(real).decode().astype(np.float64) - real)
    low, high = (np.broadcast_to(end, weight.shape) for end in weight.limits)
    levels = weight.storage.levels if isinstance(weight.storage, Alphabet) else np.arange(-128, 128)
    every = levels * weight.scale.astype(np.float64)[:, None, None]
    allowed = (levels >= low[..., None]) & (levels <= high[..., None])
    least = np.where(allowed, np.abs(every - real[..., None]), np.inf).min(-1)
    np.testing.assert_allclose(found, least, rtol=1e-5, atol=1e-6)


@given(weights(), st.integers(0, 1 << 20))
def test_what_is_covered_lies_within_half_a_step_of_the_levels(weight: IntegerWeight, seed: int) -> None:
    real = np.random.default_rng(seed).standard_normal(weight.shape) * 4
    low, high = weight.ends()
    covered, off = weight.covers(real), np.abs(weight.nearest(real).decode() - real)
    half = weight.widest_step().astype(np.float64)[:, None] / 2 * (1 + 1e-5)
    assert (off <= half)[covered].all()
    smallest, largest = (np.broadcast_to(end, weight.shape) * weight.scale[:, None] for end in weight.limits)
    assert ((real < smallest) | (real > largest))[~covered].all()
    decoded = weight.decode()
    assert low <= decoded.min()
    assert decoded.max() <= high
    assert weight.covers(decoded.astype(np.float64)).all()
    assert weight.num_levels() == len(np.unique(weight.codes))
    assert weight.zeros() == (decoded == 0).sum()
    np.testing.assert_allclose(weight.reach() * weight.scale, np.abs(decoded).sum(1), rtol=1e-5, atol=1e-6)


def test_a_table_answers_what_a_grid_does() -> None:
    weight = LookupWeight(np.array([[0, 1, 3], [2, 2, 1]], np.uint8), np.array([-2.0, 0.0, 0.5, 3.0], np.float32))
    np.testing.assert_array_equal(weight.decode(), [[-2.0, 0.0, 3.0], [0.5, 0.5, 0.0]])
    assert weight.zeros() == 2
    assert weight.num_levels() == 4
    assert weight.num_bits == 2
    assert weight.size_in_bits() == 6 * 2 + 4 * 32
    assert weight.ends() == (-2.0, 3.0)
    assert weight.widest_step() == 2.5
    assert not weight.reach().any()
    np.testing.assert_array_equal(weight.nearest(np.array([[-9.0, 0.2, 0.3]])).indices, [[0, 1, 2]])
    np.testing.assert_array_equal(weight.covers(np.array([[-3.0, -3.1, 4.25, 4.3]])), [[True, False, True, False]])


@pytest.mark.parametrize("per_tensor", [False, True])
def test_raised_scales_leave_the_other_rows_alone(per_tensor: bool) -> None:
    """And round anew where they are raised, within limits if there are any."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((3, 20)).astype(np.float32)
    params = grid(3) if not per_tensor else QuantParams(np.array(0.1, np.float32), np.array(0, np.int8), INT8_WEIGHT)
    weight = IntegerWeight.of(np.clip(np.rint(real / 0.1), -90, 90).astype(np.int8), params)
    least = np.array([0.0, 1.0, 0.2])
    raised, count = weight.raised(least, real, (np.full((3, 20), -1.0), np.full((3, 20), 1.0)))
    assert count == 1
    assert raised.storage == Words(8)
    changed = [0, 1, 2] if per_tensor else [1]
    kept = [row for row in range(3) if row not in changed]
    np.testing.assert_array_equal(raised.codes[kept], weight.codes[kept])
    np.testing.assert_array_equal(raised.codes[changed], np.clip(np.rint(real[changed]), -1, 1))
    assert (np.broadcast_to(raised.scale, 3) >= least.astype(np.float32)).all()
    assert weight.raised(np.zeros(3), real) == (weight, 0)
