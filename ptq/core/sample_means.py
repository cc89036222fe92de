"""Mean rows of a layer's samples: what the strength of its damping is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.arrays import Float

MOST = 2048
"""Samples that are kept, evenly spread over however many there are."""


@dataclass(frozen=True)
class SampleMeans:
    """Mean row of each sample at a layer's input, in both networks: for a few hundred samples less than a moment.

    Attributes:
        given: What the quantized network gives the layer. Shape [groups, samples, in].
        original: What the float network gives it. Shape of `given`.
    """

    given: NDArray[Any]
    original: NDArray[Any]

    def every(self, step: int, start: int = 0) -> SampleMeans:
        """Return each `step`-th sample."""
        return SampleMeans(self.given[:, start::step], self.original[:, start::step])

    def centered(self, _weight: NDArray[Any]) -> SampleMeans:
        """Return the rows about their own mean: what is left where a bias takes up every mean error."""
        given, original = (side.astype(np.float64) for side in (self.given, self.original))
        return SampleMeans(given - given.mean(1, keepdims=True), original - original.mean(1, keepdims=True))

    def judge(self, weight: NDArray[Any]) -> Callable[[Float], float]:
        """Return a function from weights of the quantized network to their relative error, see `LayerStatistics.judge`.

        Args:
            weight: Float weight. Shape [groups * out, in].
        """
        groups, _, width = self.original.shape
        given, asked = self.given.astype(np.float64), self._outputs(weight.reshape(groups, -1, width))
        signal = max(float(np.square(asked).sum()), 1e-300)

        def error(quantized: Float) -> float:
            found = np.matmul(given, quantized.reshape(groups, -1, width).transpose(0, 2, 1))
            return float(np.square(found - asked).sum()) / signal

        return error

    def along(self, weight: NDArray[Any]) -> Callable[[Float], tuple[float, float]]:
        """Return a function from weights to sum of products and energy, see `LayerStatistics.along`.

        Args:
            weight: Float weight. Shape [groups * out, in].
        """
        groups, _, width = self.original.shape
        asked = self._outputs(weight.reshape(groups, -1, width))
        given, signal = self.given.astype(np.float64), float(np.square(asked).sum())

        def along(quantized: Float) -> tuple[float, float]:
            found = np.matmul(given, quantized.reshape(groups, -1, width).transpose(0, 2, 1))
            return float((found * asked).sum()), signal

        return along

    def _outputs(self, weight: NDArray[Any]) -> Float:
        """Compute the float network's outputs. Shape [groups, samples, out]."""
        return np.asarray(np.matmul(self.original.astype(np.float64), weight.astype(np.float64).transpose(0, 2, 1)))


class MeansKept:
    """Mean rows under construction: at most `MOST`, evenly spread, however many samples there are."""

    def __init__(self) -> None:
        self._parts: list[SampleMeans] = []
        self._step = 1
        self._count = 0

    def add(self, part: SampleMeans) -> None:
        """Add the samples of a chunk, as they come."""
        size = part.given.shape[1]
        self._parts.append(part.every(self._step, -self._count % self._step))
        self._count += size
        if self._count > MOST * self._step:
            self._parts = [self.value().every(2)]
            self._step *= 2

    def value(self) -> SampleMeans:
        """Return the samples that are kept, of at least one part."""
        given, original = zip(*((part.given, part.original) for part in self._parts), strict=True)
        return SampleMeans(np.concatenate(given, 1), np.concatenate(original, 1))
