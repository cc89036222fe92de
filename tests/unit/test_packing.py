"""Codes in full bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ptq.passes.packing import PACKED_BITS, pack, unpack


@given(st.data(), st.sampled_from(PACKED_BITS))
def test_packing_loses_nothing(data: st.DataObject, bits: int) -> None:
    limits = {"min_value": -(1 << (bits - 1)), "max_value": (1 << (bits - 1)) - 1}
    codes = data.draw(arrays.arrays(np.int8, st.integers(1, 200), elements=st.integers(**limits)))
    packed = pack(codes, bits)
    np.testing.assert_array_equal(unpack(packed, bits, codes.size), codes)
    assert len(packed) <= codes.size * bits / 8 + 3  # each of at most three planes ends with its own padding


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_every_code_survives(bits: int) -> None:
    codes = np.arange(-(1 << (bits - 1)), 1 << (bits - 1), dtype=np.int8).repeat(8)
    packed = pack(codes, bits)
    assert len(packed) == codes.size * bits // 8
    np.testing.assert_array_equal(unpack(packed, bits, codes.size), codes)
