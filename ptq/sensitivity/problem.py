"""The interface of sensitivities, and what today's are given: rounded layers, and a network that tells their parts.

A sensitivity is a file of this room with one frozen dataclass and one verb, `measure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.sensitivity.table import SensitivityTable


@dataclass(frozen=True)
class RoundedLayer:
    """Layer as it came out at one word length; at others its errors are larger or smaller.

    Attributes:
        name: Name of the layer.
        num_bits: Word length of its weight.
        weight_error: Energy that rounding of the weight adds, by output feature, in a unit of the layer's own. Shape
            [out]; [1] where features are not told apart.
        input_error: Energy that rounding of the input adds, in the same unit. No word length of the weight changes it.
    """

    name: str
    num_bits: int
    weight_error: Float
    input_error: float = 0.0


Layer = TypeVar("Layer", bound=RoundedLayer)
Layer_contra = TypeVar("Layer_contra", bound=RoundedLayer, contravariant=True)
Seen_contra = TypeVar("Seen_contra", contravariant=True)
Network_contra = TypeVar("Network_contra", contravariant=True)


class Attribution(Protocol[Layer_contra]):
    """Protocol of a network around layers that can be asked for the part of single ones in its error.

    In float with one layer erring at a time, or quantized with a switch at every layer. `ptq.calibration.network` is
    another thing: it tells the error of whole sets of weights.
    """

    @property
    def total(self) -> float:
        """Energy of the error at the outputs as the network stands, over that of the outputs."""
        ...

    def errors(self, layer: Layer_contra, sets: Sequence[NDArray[np.intp]]) -> Float:
        """Find the error at the outputs that a layer is responsible for.

        Args:
            layer: Layer as it was rounded.
            sets: Output features whose errors are looked at, set by set.

        Returns:
            Energy of the error at the outputs over that of the outputs. Shape [sets].
        """
        ...


class Sensitivity(Protocol[Seen_contra, Network_contra]):
    """The family's one verb; which layers it takes and what it asks a network is each member's own business."""

    def measure(self, layers: Iterable[Seen_contra], bits: Sequence[int], network: Network_contra) -> SensitivityTable:
        """Measure what each layer's errors do to the outputs.

        Layers come one by one, not in a mapping of weight problems: those of a walk are solved on the way, and what
        their errors do can be seen only while the walk stands before them. And they come as they were rounded where a
        sensitivity scales an error that was really made.

        Args:
            layers: Rounded layers; the next one is asked for when the one before is measured.
            bits: Word lengths to tell the errors for, ascending.
            network: Network that the layers are of.

        Returns:
            Errors of all layers at all those word lengths.
        """
        ...
