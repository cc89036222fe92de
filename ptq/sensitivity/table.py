"""Errors at the network's outputs for every word length: sensitivities give them, allocators take them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ptq.core.arrays import Float

FLOAT = 32
"""Word length of a layer that stays float."""


@dataclass(frozen=True)
class SensitivityTable:
    """Error that each layer by itself causes at the outputs, by word length.

    Attributes:
        layers: Names of the layers.
        bits: Word lengths, ascending, each once; `FLOAT` stands for float.
        error: Energy of the error over that of the outputs; infinite where a layer must not have that word length.
            Shape [layers, bits].
        rows: Layer -> error of each of its output features, where they were told apart. Shapes [out, bits].
        rest: Error that comes from none of the layers, in the same unit.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    error: Float
    rows: Mapping[str, Float] = field(default_factory=dict)
    rest: float = 0.0

    def __post_init__(self) -> None:
        if sorted(set(self.bits)) != list(self.bits):
            raise ValueError(f"bits are {self.bits}; expected ascending word lengths, each once")
        if self.error.shape != (len(self.layers), len(self.bits)):
            raise ValueError(f"error has shape {self.error.shape}; expected {(len(self.layers), len(self.bits))}")

    @staticmethod
    def of_rows(rows: Mapping[str, Float], bits: Sequence[int]) -> SensitivityTable:
        """Make the table of layers whose output features were told apart: their errors add up to the layer's."""
        error = np.array([each.sum(0) for each in rows.values()]).reshape(len(rows), len(bits))
        return SensitivityTable(tuple(rows), tuple(bits), error, rows)

    def among(self, bits: Mapping[str, Collection[int]]) -> SensitivityTable:
        """Rule out all word lengths but some.

        Args:
            bits: Layer -> word lengths that it may have.

        Raises:
            KeyError: A layer of the table is missing.

        Example:
            >>> table = SensitivityTable(("a",), (2, 4, 8), np.array([[4.0, 1.0, 0.1]]))
            >>> table.among({"a": (4, 8)}).error
            array([[inf, 1. , 0.1]])
        """
        ruled_out = np.array([[each not in bits[name] for each in self.bits] for name in self.layers], bool)
        ruled_out = ruled_out.reshape(self.error.shape)
        rows = {name: np.where(ruled_out[self.layers.index(name)], np.inf, each) for name, each in self.rows.items()}
        return replace(self, error=np.where(ruled_out, np.inf, self.error), rows=rows)

    @property
    def shortest(self) -> dict[str, int]:
        """Layer -> the shortest word that it may have.

        Raises:
            ValueError: A layer may have none.
        """
        allowed = np.isfinite(self.error)
        if not allowed.any(1).all():
            raise ValueError(f"layer {self.layers[int(np.argmin(allowed.any(1)))]!r} may have no word length at all")
        return {name: self.bits[index] for name, index in zip(self.layers, allowed.argmax(1), strict=True)}


def at_other_bits(energy: Float, num_bits: int, bits: Sequence[int]) -> Float:
    """Scale the energy of a rounding error to other word lengths: each bit halves the steps and quarters it.

    Args:
        energy: Energy at `num_bits`. Any shape.
        num_bits: Word length at which it was seen.
        bits: Other word lengths; nothing is left at `FLOAT`.

    Returns:
        Shape of `energy`, then [bits].

    Example:
        >>> at_other_bits(np.array(1.0), 4, (3, 4, 6, FLOAT))
        array([4.    , 1.    , 0.0625, 0.    ])
    """
    scaled = np.ldexp(np.asarray(energy, np.float64)[..., None], 2 * (num_bits - np.asarray(bits, np.intc)))
    return np.where(np.asarray(bits) == FLOAT, 0.0, scaled)
