"""Share of each layer: the error that goes from the quantized network's outputs when it is restored to float."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ptq.sensitivity.problem import Attribution, Layer
from ptq.sensitivity.table import FLOAT, SensitivityTable, at_other_bits


@dataclass(frozen=True)
class RestoredShare:
    """Divide each layer's share of the final error between its weight and its input; longer words help the weight."""

    def measure(self, layers: Iterable[Layer], bits: Sequence[int], network: Attribution[Layer]) -> SensitivityTable:
        """Measure the error that each layer causes.

        Args:
            layers: Rounded layers.
            bits: Word lengths to tell the errors for.
            network: The quantized network, with a switch at every layer.

        Returns:
            The table; its rest is the error that no layer accounts for at the word length that it was rounded to.
        """
        names, errors, explained = list[str](), list[np.ndarray](), 0.0
        for layer in layers:
            weight, given = float(layer.weight_error.sum()), layer.input_error
            (whole,) = network.errors(layer, [np.arange(len(layer.weight_error))])
            part = weight / max(weight + given, 1e-300)
            of_weight, of_input = whole * part, whole * (1 - part)
            explained += of_weight + of_input
            names.append(layer.name)
            errors.append(at_other_bits(np.asarray(of_weight), layer.num_bits, bits))
            errors[-1] += np.where(np.asarray(bits) == FLOAT, 0.0, of_input)
        table = np.array(errors, np.float64).reshape(len(names), len(bits))
        return SensitivityTable(tuple(names), tuple(bits), table, rest=max(network.total - explained, 0.0))
