"""What a weight method is given: one layer as plain arrays, without graph, session or file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ptq.core.encoding import WeightEncoding
from ptq.core.layer_statistics import LayerStatistics
from ptq.core.points import Points
from ptq.core.spec import QuantSpec


class Needs(Enum):
    """What a weight method has to know besides the weight."""

    WEIGHT = "weight"
    GRAM = "gram"


@dataclass(frozen=True)
class LayerProblem:
    """One weight to quantize.

    Attributes:
        name: Layer name, for messages.
        weight: Float weight, shape [out, in], rows independent. Never written to.
        spec: The grid wished for; `PerAxis(0)` means one scale per row.
        statistics: What was seen at the layer's input, if the method needs it.
        points: How many points of the spec's word length are summed for each weight; None is one.
    """

    name: str
    weight: NDArray[np.float32]
    spec: QuantSpec
    statistics: LayerStatistics | None = None
    points: Points | None = None


class WeightQuantizer(Protocol):
    """The family's one verb."""

    @property
    def needs(self) -> Needs:
        """What `quantize` will look at."""
        ...

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Choose grid and codes for one weight."""
        ...
