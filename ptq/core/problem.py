"""What a weight method is given: one layer as plain arrays, without graph, session or file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ptq.core.encoding import WeightEncoding
from ptq.core.spec import QuantSpec


@dataclass(frozen=True)
class LayerProblem:
    """One weight to quantize.

    Attributes:
        name: Layer name, for messages.
        weight: Float weight, shape [out, in], rows independent. Never written to.
        spec: The grid wished for; `PerAxis(0)` means one scale per row.
    """

    name: str
    weight: NDArray[np.float32]
    spec: QuantSpec


class WeightQuantizer(Protocol):
    """The family's one verb."""

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Choose grid and codes for one weight."""
        ...
