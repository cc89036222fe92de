"""Sums of floats whose bits do not depend on who added what, or when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ptq.core.arrays import Float

LEVELS = 64
"""Keys are index * LEVELS + level: a node holds the terms from index * 2^level on, 2^level of them."""


@dataclass(frozen=True)
class TreeSum:
    """Sum of numbered terms, added along a binary tree that the numbers alone decide.

    Neighbors are added as soon as both are there, so parts may be summed anywhere and merged in any order: the same
    additions are made. Of n terms in a row at most log2 n sums are held.

    Attributes:
        nodes: Key -> sum of the terms below that node, float64.

    Example:
        >>> terms = [TreeSum.of(np.array([x]), number) for number, x in enumerate((0.1, 0.2, 0.3))]
        >>> a, b = terms[0].merge(terms[1]).merge(terms[2]), terms[2].merge(terms[0]).merge(terms[1])
        >>> a.value == b.value, len(a.nodes)
        (array([ True]), 2)
    """

    nodes: Mapping[int, Float]

    @staticmethod
    def of(term: Float, number: int) -> TreeSum:
        """Make a sum of one term.

        Args:
            term: Array to add. Any shape, the same for all terms.
            number: Number of the term, from 0.
        """
        return TreeSum({number * LEVELS: np.asarray(term, np.float64)})

    def merge(self, other: TreeSum) -> TreeSum:
        """Merge two sums.

        Raises:
            ValueError: A term is in both.
        """
        nodes = dict(self.nodes)
        for key, total in other.nodes.items():
            if key in nodes:
                raise ValueError(f"terms from number {key // LEVELS} on are in both sums; expected each once")
            _add(nodes, key, total)
        return TreeSum(dict(sorted(nodes.items())))  # equal sums are equal as files too

    @property
    def value(self) -> Float:
        """Total of all terms; zeros of no shape if there are none."""
        order = sorted(self.nodes, key=lambda key: (key // LEVELS) << (key % LEVELS))
        total = np.zeros(())
        for key in order:
            total = total + self.nodes[key]
        return total


def _add(nodes: dict[int, Float], key: int, total: Float) -> None:
    """Put a node in, and add it to its neighbor if that is there, and so on upwards."""
    while (neighbor := ((key // LEVELS) ^ 1) * LEVELS + key % LEVELS) in nodes:
        first, second = (total, nodes.pop(neighbor)) if key < neighbor else (nodes.pop(neighbor), total)
        total, key = first + second, key // LEVELS // 2 * LEVELS + key % LEVELS + 1
    nodes[key] = total
