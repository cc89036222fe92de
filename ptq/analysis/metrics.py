"""Metrics of how far one model's outputs are from another's, accumulated sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.errors import VerificationError

CAP_DB = 200.0
"""Ratio that stands for no error at all; also keeps infinities out of JSON."""


@dataclass(frozen=True)
class OutputMetrics:
    """Agreement of one output over a data set.

    Attributes:
        name: The output.
        sqnr_db: 10 log10(sum reference^2 / sum (reference - value)^2), dB.
        cosine: Cosine of the two outputs, all samples as one vector.
        agreement: Share of samples (or positions) with the same arg max; of equal elements for integer outputs. None
            for an output without classes.
        max_abs_error: Largest difference, real units.
        varied: Whether the float model's decisions differ anywhere: to agree with one that never changes is easy.
        is_float: Whether it holds real numbers.
    """

    name: str
    sqnr_db: float
    cosine: float
    agreement: float | None
    max_abs_error: float
    varied: bool = True
    is_float: bool = True


class OutputComparison:
    """Running sums behind an `OutputMetrics`.

    Attributes:
        num_resized: Number of samples on which the shapes differ, which are not compared.
    """

    def __init__(self, name: str, *, has_classes: bool = True) -> None:
        self._name, self._has_classes = name, has_classes
        self._signal = self._error = self._other = self._dot = 0.0
        self._equal = self._decisions = 0
        self._largest = 0.0
        self._first: Any = None
        self._varied, self._is_float = False, True
        self._sizes: list[tuple[int, int]] = []
        self.num_resized = 0

    def update(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Add one sample's output of both models; one of another shape is counted as such.

        Raises:
            VerificationError: `value` is not finite where `reference` is.
        """
        self._sizes.append((reference.size, value.size))
        if reference.shape != value.shape:
            self.num_resized += 1
            return
        self._decide(reference, value)
        if reference.dtype.kind in "OSU":  # text is the same or not
            reference, value = np.ones(reference.shape), reference == value
        a, b = reference.astype(np.float64).reshape(-1), value.astype(np.float64).reshape(-1)
        finite = np.isfinite(a)
        if not np.isfinite(b[finite]).all():
            raise VerificationError(f"output {self._name!r} is NaN or infinite where the float model's is finite")
        a, b = a[finite], b[finite]
        difference = a - b
        self._signal += float(a @ a)
        self._other += float(b @ b)
        self._dot += float(a @ b)
        self._error += float(difference @ difference)
        self._largest = max(self._largest, float(np.abs(difference).max(initial=0.0)))

    def value(self) -> OutputMetrics:
        """Return the metrics over all samples so far; of the sizes where no sample has the same in both models."""
        if self._sizes and self.num_resized == len(self._sizes):
            return self._of_sizes()
        norms = float(np.sqrt(self._signal * self._other))
        cosine = self._dot / norms if norms > 0 else float(self._error == 0)
        agreement = self._equal / self._decisions if self._decisions else None
        ratio = sqnr_db(self._signal, self._error)
        return OutputMetrics(self._name, ratio, cosine, agreement, self._largest, self._varied, self._is_float)

    def rows(self) -> tuple[OutputMetrics, ...]:
        """Return the metrics over all samples so far, and those of the sizes if these differ on any."""
        both = 0 < self.num_resized < len(self._sizes)
        return (self.value(), self._of_sizes()) if both else (self.value(),)

    def _of_sizes(self) -> OutputMetrics:
        sizes = OutputComparison(f"size of {self._name}", has_classes=False)
        sizes.update(*np.array(self._sizes, np.float64).T)
        return sizes.value()

    def _decide(self, reference: NDArray[Any], value: NDArray[Any]) -> None:
        """Count equal decisions: equal elements of whole numbers and text, equal places of the largest of reals."""
        self._is_float = reference.dtype.kind not in "iubOSU"
        if not self._has_classes:
            return
        axis = class_axis(reference.shape) if self._is_float else None
        if not reference.size or (self._is_float and axis is None):
            return
        a, b = (reference.argmax(axis), value.argmax(axis)) if self._is_float else (reference, value)
        self._equal += int(np.sum(a == b))
        self._decisions += a.size
        self._first = a.reshape(-1)[0] if self._first is None else self._first
        self._varied = self._varied or bool(np.any(a != self._first))


def class_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of an output's classes: 1 for [N, C] and [N, C, H, W], the last for [N, S, C]; else None."""
    if len(shape) < 2:
        return None
    axis = 1 if len(shape) in (2, 4) else len(shape) - 1
    return axis if shape[axis] > 1 else None


def sqnr_db(signal: float, error: float) -> float:
    """Return the signal to quantization noise ratio of two energies, in dB, capped at 200.

    Example:
        >>> sqnr_db(100.0, 1.0)
        20.0
    """
    if error <= 0:
        return CAP_DB
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / error), -CAP_DB, CAP_DB))
