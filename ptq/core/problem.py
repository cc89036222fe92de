"""What a weight method is given: one layer as plain arrays, without graph, session or file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ptq.core.encoding import WeightEncoding
from ptq.core.layer_statistics import LayerStatistics
from ptq.core.saturation import PAIR_SUM, SaturationLimits
from ptq.core.spec import PerBlock, QuantSpec
from ptq.core.widths import Widths


class Needs(Flag):
    """What a weight method has to know besides the weight, which is 0: moments of the inputs, the network itself."""

    WEIGHT = 0
    MOMENTS = auto()
    NETWORK = auto()
    GRADIENT = auto()


@dataclass(frozen=True)
class LayerProblem:
    """One weight to quantize.

    Attributes:
        name: Layer name, for messages.
        weight: Float weight, shape [out, in], rows independent. Never written to.
        spec: The grid wished for; `PerAxis(0)` means one scale per row.
        statistics: What was seen at the layer's input, if the method needs it.
        widths: Bits of each weight; None is the spec's word length for all.
        order: Columns as kernels meet them whose sums of two neighbours must not overflow; None where nothing can.
    """

    name: str
    weight: NDArray[np.float32]
    spec: QuantSpec
    statistics: LayerStatistics | None = None
    widths: Widths | None = None
    order: NDArray[np.intp] | None = None

    @property
    def limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest level of each weight by itself. Shapes [out, in], or [] if all are alike."""
        if self.widths is not None:
            return self.widths.limits(narrow_range=self.spec.narrow_range)
        low, high = self.spec.limits
        return np.asarray(low, np.float64), np.asarray(high, np.float64)

    @functools.cached_property
    def saturation(self) -> SaturationLimits | None:
        """What neighbours leave each other, if they could overflow. Products in blocks sum in 32 bits, or in float."""
        ends = self.limits
        is_safe = isinstance(self.spec.granularity, PerBlock) or 2 * max(-ends[0].min(), ends[1].max()) <= PAIR_SUM
        if self.order is None or is_safe:
            return None
        return SaturationLimits.of(self.weight, self.order, self.spec, ends)


class WeightQuantizer(Protocol):
    """The family's one verb."""

    @property
    def needs(self) -> Needs:
        """What `quantize` will look at."""
        ...

    @property
    def independent_rows(self) -> bool:
        """Whether rows with scales of their own come out alike, whatever other rows there are."""
        ...

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Choose grid and codes for one weight."""
        ...


class Network(Protocol):
    """The whole network, asked about by methods that judge weights by what comes out at its end."""

    def error(self, weights: Mapping[str, WeightEncoding]) -> float:
        """Energy of the outputs' error over that of the float outputs, on the calibration set.

        Args:
            weights: Layer name -> its weight; all other layers stay float.
        """
        ...

    def gain(self, layer: str) -> float:
        """Energy at the network's outputs for each unit of energy that an error has at a layer's output."""
        ...

    def gradient(self, layer: str) -> NDArray[np.float64]:
        """Derivative of the network's loss in a layer's float weight. Shape [out, in], loss per real unit."""
        ...


@runtime_checkable
class NetworkMethod(Protocol):
    """A method that sees all layers at once."""

    @property
    def needs(self) -> Needs:
        """What `quantize_all` will look at; NETWORK is among it, and GRADIENT if it asks for gradients."""
        ...

    def quantize_all(self, problems: Mapping[str, LayerProblem], network: Network) -> Mapping[str, WeightEncoding]:
        """Choose grids and codes for all weights.

        Args:
            problems: By layer, in dataflow order; with statistics if MOMENTS are among the needs.
            network: Answers what weights cost at its outputs.

        Returns:
            A weight for every problem.
        """
        ...
