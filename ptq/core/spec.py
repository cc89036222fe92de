"""Integer grids as they are wished for: word length, sign, symmetry, granularity. No data, no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: weight [out, in] -> scale []."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale per index of `axis`: weight [out, in, kh, kw], axis 0 -> scale [out]."""

    axis: int


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per `block_size` neighbors along `axis`: weight [out, in], axis 1 -> scale [out, in / block_size].

    ONNX calls it `block_size`; papers often say group size.
    """

    axis: int
    block_size: int


Granularity = PerTensor | PerAxis | PerBlock


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """An integer grid before any data was seen.

    Attributes:
        num_bits: Word length, 2 to 8 or 32 (biases).
        signed: Two's complement codes if true, else unsigned.
        symmetric: The zero point sits at the middle code (0 if signed).
        narrow_range: Drop the most negative code, so that -qmin == qmax.
        granularity: Which elements share a scale.

    Example:
        >>> QuantSpec(signed=True, symmetric=True, narrow_range=True).limits
        (-127, 127)
    """

    num_bits: int = 8
    signed: bool = False
    symmetric: bool = False
    narrow_range: bool = False
    granularity: Granularity = field(default_factory=PerTensor)

    def __post_init__(self) -> None:
        if self.num_bits not in (*range(2, 9), 32):
            raise ValueError(f"num_bits is {self.num_bits}; expected 2 to 8, or 32")
        if self.narrow_range and not self.signed:
            raise ValueError("narrow_range drops the most negative code, so it needs signed=True")

    @property
    def qmin(self) -> int:
        """Smallest code of the grid."""
        return int(self.narrow_range) - (1 << (self.num_bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code of the grid."""
        return (1 << (self.num_bits - 1)) - 1 if self.signed else (1 << self.num_bits) - 1

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return self.qmin, self.qmax

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """Smallest numpy dtype that holds the codes."""
        if self.num_bits == 32:
            return np.dtype(np.int32)
        return np.dtype(np.int8 if self.signed else np.uint8)


INT8_WEIGHT = QuantSpec(num_bits=8, signed=True, symmetric=True, narrow_range=True)
"""Symmetric signed weights: the only kind whose integer kernels are fast everywhere."""
