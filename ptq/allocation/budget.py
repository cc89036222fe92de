"""Costs of words, and the interface of allocators: errors, costs and a limit in, word lengths out.

A cost is a frozen dataclass with a unit and one verb, `of`; anyone may write one. An allocator is a file of this room
with one frozen dataclass and one verb, `allocate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from ptq.allocation.bit_plan import BitPlan, LayerBits
from ptq.sensitivity.table import SensitivityTable


class Cost(Protocol):
    """A price for the words of a layer."""

    @property
    def unit(self) -> str:
        """Name of the unit that is counted."""
        ...

    def of(self, layer: str, bits: LayerBits) -> float:
        """Count the cost of one layer; never less for longer words.

        Args:
            layer: Name of the layer.
            bits: Word length of its weights; with bits for each output feature, the features' costs add up.
        """
        ...


@dataclass(frozen=True)
class Bytes:
    """Cost in bytes of weights in the file, without scales.

    Attributes:
        num_weights: Layer -> how many weights it has.
    """

    num_weights: Mapping[str, int]
    unit: ClassVar[str] = "bytes"

    def of(self, layer: str, bits: LayerBits) -> float:
        """Return the bytes of a layer."""
        if isinstance(bits, tuple):
            return self.num_weights[layer] // len(bits) * sum(bits) / 8
        return self.num_weights[layer] * bits / 8


@dataclass(frozen=True)
class Macs:
    """Cost in products that longer words add in kernels whose words are as short as the layer's shortest.

    Attributes:
        num_macs: Layer -> products per sample with one word for each weight.
        num_bits: Layer -> word length of those kernels.
    """

    num_macs: Mapping[str, int]
    num_bits: Mapping[str, int]
    unit: ClassVar[str] = "extra products per sample"

    def of(self, layer: str, bits: LayerBits) -> float:
        """Return the extra products of a layer."""
        rows = bits if isinstance(bits, tuple) else (bits,)
        extra = sum(max(-(-each // self.num_bits[layer]), 1) - 1 for each in rows)
        return self.num_macs[layer] * extra / len(rows)


class Bound(Enum):
    """Side of the bargain that a limit bounds."""

    COST = "cost"
    ERROR = "error"


class Allocator(Protocol):
    """Protocol of allocators, which choose word lengths."""

    @property
    def bounds(self) -> Bound:
        """Side that `limit` bounds; the other one is made as small as the allocator can."""
        ...

    def allocate(self, table: SensitivityTable, cost: Cost, limit: float) -> BitPlan:
        """Choose word lengths.

        Args:
            table: Errors by layer and word length. A layer never gets a word length that is ruled out there.
            cost: Cost of words.
            limit: Most cost of all layers, in the cost's unit; or most error, in the table's.

        Returns:
            Bits of every layer of the table. If no plan keeps the limit: the one that comes nearest.
        """
        ...
