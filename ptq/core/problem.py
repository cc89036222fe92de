"""Problem of a weight method: one layer as plain arrays, without graph, session or file."""

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
    """Needs of a weight method besides the weight, which is 0: moments of the inputs, the network itself."""

    WEIGHT = 0
    MOMENTS = auto()
    NETWORK = auto()
    GRADIENT = auto()


@dataclass(frozen=True)
class LayerProblem:
    """Problem of finding codes for one weight.

    Attributes:
        name: Layer name, for messages.
        weight: Float weight, shape [out, in], rows independent. Never written to.
        spec: Grid that is asked for; `PerAxis(0)` means one scale per row.
        statistics: Moments of the layer's input, if the method needs them.
        widths: Bits of each weight; None takes the spec's word length for all.
        order: Columns as kernels meet them whose sums of two neighbors must not overflow; None where nothing can.
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
        """Limits that neighbors set each other; None if they cannot overflow, as in blocks, which sum in 32 bits."""
        ends = self.limits
        is_safe = isinstance(self.spec.granularity, PerBlock) or 2 * max(-ends[0].min(), ends[1].max()) <= PAIR_SUM
        if self.order is None or is_safe:
            return None
        return SaturationLimits.of(self.weight, self.order, self.spec, ends)


class WeightQuantizer(Protocol):
    """Protocol of weight methods that see one layer at a time."""

    @property
    def needs(self) -> Needs:
        """Needs of `quantize` besides the weight."""
        ...

    @property
    def independent_rows(self) -> bool:
        """Whether rows with scales of their own come out alike, whatever other rows there are."""
        ...

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Choose grid and codes for one weight."""
        ...


class Network(Protocol):
    """Protocol of a whole network, for methods that judge weights by the error at its outputs."""

    def error(self, weights: Mapping[str, WeightEncoding]) -> float:
        """Measure the energy of the outputs' error over that of the float outputs, on the calibration set.

        Args:
            weights: Layer name -> its weight; all other layers stay float.
        """
        ...

    def gain(self, layer: str) -> float:
        """Measure the energy at the network's outputs for each unit of energy that an error has at a layer's output."""
        ...

    def gradient(self, layer: str) -> NDArray[np.float64]:
        """Return the derivative of the network's loss in a layer's float weight. Shape [out, in], loss per unit."""
        ...


@runtime_checkable
class NetworkMethod(Protocol):
    """Protocol of methods that see all layers at once."""

    @property
    def needs(self) -> Needs:
        """Needs of `quantize_all`; NETWORK is among them, and GRADIENT if it asks for gradients."""
        ...

    def quantize_all(self, problems: Mapping[str, LayerProblem], network: Network) -> Mapping[str, WeightEncoding]:
        """Choose grids and codes for all weights.

        Args:
            problems: Layer name -> problem, in dataflow order; with statistics if MOMENTS are among the needs.
            network: Network that tells which error weights cause at its outputs.

        Returns:
            Layer name -> weight, for every problem.
        """
        ...
