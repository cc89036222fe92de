"""Run the float model over the calibration set and fold what its inner tensors do into statistics.

Samples are run one at a time by sessions with a single thread each, side by side on the machine's cores, and the
statistics add up exactly: the result does not depend on the order, the chunking or the number of workers. Memory is
bounded by the tensors of the samples in flight, never by their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.parallel import in_order
from ptq.core.channel_mean import ChannelMean
from ptq.core.errors import CalibrationError
from ptq.core.statistics import Histogram, HistogramAccumulator
from ptq.modelfile import run, session_of
from ptq.passes.infer_shapes import exposed

Feed = Mapping[str, NDArray[Any]]
FLUSH = 1 << 18  # values gathered per tensor before they are counted: a count has a fixed cost


@dataclass(frozen=True)
class CalibrationStatistics:
    """What was seen over a calibration set.

    Attributes:
        histograms: Value name -> distribution.
        means: Value name -> mean per channel.
        num_samples: How many samples were run.
    """

    histograms: Mapping[str, Histogram]
    means: Mapping[str, ChannelMean]
    num_samples: int


class StatisticsCollector:
    """Statistics of several tensors under construction.

    Args:
        histograms: Values whose distribution is wanted.
        means: Values whose channel means are wanted -> their channel axis.
        without: Values -> channels (last axis) that their distribution leaves out.
    """

    def __init__(
        self,
        histograms: Sequence[str],
        means: Mapping[str, int],
        without: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    ) -> None:
        self._accumulators = {name: HistogramAccumulator() for name in histograms}
        self._axes, self._without = dict(means), dict(without)
        self._means: dict[str, ChannelMean] = {}
        self._pending: dict[str, list[NDArray[np.float32]]] = {name: [] for name in histograms}
        self._num_samples = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Every value to observe."""
        return tuple(dict.fromkeys([*self._accumulators, *self._axes]))

    def update(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Add one sample's tensors, in the order of `names`.

        Raises:
            CalibrationError: A tensor holds NaN or infinity; names it and the sample.
        """
        for name, array in zip(self.names, arrays, strict=True):
            values = array.astype(np.float32, copy=False)
            if not np.isfinite(values.sum(dtype=np.float64)):
                raise CalibrationError(
                    f"tensor {name!r} is NaN or infinite on calibration sample {self._num_samples}; "
                    "expected finite activations, check the weights and the sample's preprocessing"
                )
            if name in self._axes and values.size:
                mean = ChannelMean.of(values, self._axes[name])
                self._means[name] = self._means[name].merge(mean) if name in self._means else mean
            if name in self._pending:
                inner = np.delete(values, self._without[name], -1) if name in self._without else values
                self._pending[name].append(inner.reshape(-1))
                if sum(len(part) for part in self._pending[name]) >= FLUSH:
                    self._flush(name)
        self._num_samples += 1

    def value(self) -> CalibrationStatistics:
        """The statistics of everything seen.

        Raises:
            CalibrationError: Nothing was.
        """
        if not self._num_samples:
            raise CalibrationError("the calibration set holds no sample; expected at least one")
        for name in self._pending:
            self._flush(name)
        histograms = {name: accumulator.value() for name, accumulator in self._accumulators.items()}
        return CalibrationStatistics(histograms, dict(self._means), self._num_samples)

    def _flush(self, name: str) -> None:
        if self._pending[name]:
            self._accumulators[name].update(np.concatenate(self._pending[name]))
            self._pending[name] = []


def collect(
    model: ir.Model,
    feeds: Iterable[Feed],
    collector: StatisticsCollector,
    *,
    custom_ops: Sequence[str | Path] = (),
    num_workers: int | None = None,
) -> CalibrationStatistics:
    """Statistics of inner tensors over a calibration set.

    Args:
        model: Prepared float model.
        feeds: Samples; consumed once, one after the other.
        collector: Knows which values to observe; may have seen other samples before.
        custom_ops: Libraries the model needs.
        num_workers: Samples run side by side; default: one per core.

    Returns:
        The statistics of everything the collector has seen.

    Raises:
        CalibrationError: There was no sample, or a tensor is not finite.
    """
    names = collector.names
    if not names:  # weights alone: the samples still count
        for _ in feeds:
            collector.update([])
        return collector.value()
    with session_of(exposed(model, names), custom_ops=custom_ops) as session:

        def forward(feed: Feed) -> list[NDArray[Any]]:
            return run(session, dict(feed), names)

        for arrays in in_order(forward, feeds, num_workers or os.cpu_count() or 1):
            collector.update(arrays)
    return collector.value()
