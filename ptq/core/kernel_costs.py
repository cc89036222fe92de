"""Times of kernels as sums over what they do: stated numbers, so that no stopwatch decides a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one node, counted.

    Attributes:
        kind: `dense`, `depthwise` or `grouped` layers, else the operator.
        values: Numbers that it makes, channels filled up to vectors; of pooling over a whole image, that it reads.
        products: Products that it sums.
        weights: Weights that it reads.
        taps: Windows times the places in each; of layers over all channels only where there is more than one place.
        edges: Windows that end with a vector that is not full; three times as many where it ends within four numbers.
        rest: Numbers in channels that fill no vector; of layers over all channels, all numbers if there are any.
    """

    kind: str
    values: int
    products: int = 0
    weights: int = 0
    taps: int = 0
    edges: int = 0
    rest: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Nanoseconds of a kernel for all that `Work` counts, and for being called at all."""

    call: float = 0.0
    value: float = 0.0
    product: float = 0.0
    weight: float = 0.0
    tap: float = 0.0
    edge: float = 0.0
    rest: float = 0.0

    def microseconds(self, work: Work) -> float:
        """Estimate the time of a node.

        Example:
            >>> Rates(call=500.0, value=0.25).microseconds(Work("Mul", 2000))
            1.0
        """
        common = self.value * work.values + self.product * work.products + self.weight * work.weights
        return (self.call + common + self.tap * work.taps + self.edge * work.edges + self.rest * work.rest) / 1e3


@dataclass(frozen=True, slots=True)
class KernelCosts:
    """Stated times of onnxruntime's kernels on a kind of processor, one thread.

    Attributes:
        floats: Kind of work -> its rates in float; none for what takes no time of its own.
        integers: The same on codes.
        conversion: Rates of a conversion between float and codes, with the change of layout that comes with it.
    """

    floats: Mapping[str, Rates]
    integers: Mapping[str, Rates]
    conversion: Rates
