"""Influence of each output feature's rounding on the network's outputs, measured set by set of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ptq.core.arrays import Float
from ptq.sensitivity.problem import Attribution, Layer
from ptq.sensitivity.table import SensitivityTable, at_other_bits


@dataclass(frozen=True)
class FeatureInfluence:
    """Let one layer err at a time, some of its features after the others, and look at the outputs.

    Attributes:
        max_sets: Sets of features whose errors are tried one after the other; features of like errors share a set.
    """

    max_sets: int = 32

    def measure(self, layers: Iterable[Layer], bits: Sequence[int], network: Attribution[Layer]) -> SensitivityTable:
        """Measure the error that each output feature causes.

        Args:
            layers: Rounded layers, features told apart.
            bits: Word lengths to tell the errors for.
            network: The network in float, in which nothing else errs.

        Returns:
            The table, with the rows of every layer.

        Cost:
            One run of what comes behind a layer per set of features and sample looked at.
        """
        rows = {layer.name: at_other_bits(self._by_feature(layer, network), layer.num_bits, bits) for layer in layers}
        return SensitivityTable.of_rows(rows, bits)

    def _by_feature(self, layer: Layer, network: Attribution[Layer]) -> Float:
        """Divide the error of each set among its features, by what they err at the layer's output. Shape [out]."""
        energy = layer.weight_error
        sets = np.array_split(np.argsort(-energy, kind="stable"), min(self.max_sets, len(energy)))
        by_feature = np.zeros(len(energy))
        for features, error in zip(sets, network.errors(layer, sets), strict=True):
            by_feature[features] = error * energy[features] / max(float(energy[features].sum()), 1e-300)
        return by_feature
