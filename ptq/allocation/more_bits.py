"""Allocation of longer words, or float, to layers that gain most for their price, until the error is small enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ptq.allocation.bit_plan import BitPlan
from ptq.allocation.budget import Bound, Cost
from ptq.sensitivity.table import SensitivityTable

FREE = 1e-300
"""Price of a longer word that costs nothing more."""


@dataclass(frozen=True)
class MoreBits:
    """Move one layer at a time, by as many bits as make the best bargain, until the error is small enough."""

    bounds: ClassVar[Bound] = Bound.ERROR

    def allocate(self, table: SensitivityTable, cost: Cost, limit: float) -> BitPlan:
        """Bring the error down at the least cost.

        Args:
            table: Errors by layer.
            cost: Cost of words.
            limit: Most error of all layers and of the rest.

        Returns:
            Bits of every layer; the longest that help wherever nothing brings the error down to the limit.

        Example:
            >>> import numpy as np
            >>> from ptq.allocation.budget import Bytes
            >>> table = SensitivityTable(("a", "b"), (4, 6), np.array([[0.1, 0.006], [0.01, 0.0006]]))
            >>> dict(MoreBits().allocate(table, Bytes({"a": 100, "b": 1000}), 0.02).layers)
            {'a': 6, 'b': 4}
        """
        errors, at = table.error.tolist(), [table.bits.index(bits) for bits in table.shortest.values()]
        prices = [[cost.of(name, bits) for bits in table.bits] for name in table.layers]

        def bargain(move: tuple[int, int]) -> float:
            layer, to = move
            price = prices[layer][to] - prices[layer][at[layer]]
            return float(errors[layer][at[layer]] - errors[layer][to]) / max(price, FREE)

        error = table.rest + sum(own[column] for own, column in zip(errors, at, strict=True))
        while error > limit:
            moves = [(layer, to) for layer, own in enumerate(errors) for to in range(at[layer] + 1, len(own))]
            best = max(moves, key=bargain, default=None)
            if best is None or bargain(best) <= 0:
                break
            layer, to = best
            error += errors[layer][to] - errors[layer][at[layer]]
            at[layer] = to
        return BitPlan({name: table.bits[column] for name, column in zip(table.layers, at, strict=True)})
