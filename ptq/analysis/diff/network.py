"""The quantized network with a switch at every layer, for those who ask how much of the error each layer causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.sensitivity.problem import RoundedLayer


@dataclass(frozen=True)
class SwitchedNetwork:
    """A quantized network whose layers were restored one at a time.

    Attributes:
        total: Energy of the error at its outputs over that of the outputs.
        shares: Layer -> share of that error that goes with the layer in float.
    """

    total: float
    shares: Mapping[str, float]

    def errors(self, layer: RoundedLayer, sets: Sequence[NDArray[np.intp]]) -> Float:
        """The part of the error that a layer's weight and input cause, see `Attribution.errors`.

        Features are not told apart: every set is the whole layer. Shares that add up to more than all are scaled down.
        """
        whole = max(sum(self.shares.values()), 1.0)
        return np.full(len(sets), self.total * self.shares.get(layer.name, 0.0) / whole)

    def or_guessed(self, layers: Sequence[RoundedLayer]) -> SwitchedNetwork:
        """Return this network if any layer could be switched, else one that divides the error by errors of weights."""
        if any(self.shares.get(layer.name) for layer in layers):
            return self
        errors = {layer.name: float(layer.weight_error.sum()) for layer in layers}
        whole = max(sum(errors.values()), 1e-300)
        return SwitchedNetwork(self.total, {name: each / whole for name, each in errors.items()})
