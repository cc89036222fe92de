"""Run the float model over the calibration set and fold what its inner tensors do into statistics.

Samples are run one at a time by sessions with a single thread each, side by side on the machine's cores, and the
statistics add up exactly: the result does not depend on the order, the chunking or the number of workers. Memory is
bounded by the tensors of the samples in flight, never by their number.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.engine import HERE, Engine, Threads
from ptq.core.channel_mean import ChannelMean
from ptq.core.errors import CalibrationError
from ptq.core.statistics import Histogram, HistogramAccumulator
from ptq.modelfile import run, session_of
from ptq.passes.infer_shapes import exposed

Feed = Mapping[str, NDArray[Any]]
PART = 32  # samples that go to a machine at once
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

    def merge(self, other: CalibrationStatistics) -> CalibrationStatistics:
        """Of both sets; exact, so no order or split of the samples changes a bit."""
        return CalibrationStatistics(
            {name: seen.merge(other.histograms[name]) for name, seen in self.histograms.items()},
            {  # a value that was empty in all samples of a part has no mean there
                name: self.means[name].merge(other.means[name]) if name in self.means and name in other.means else mean
                for name, mean in {**other.means, **self.means}.items()
            },
            self.num_samples + other.num_samples,
        )


@dataclass(frozen=True)
class Wanted:
    """What to look at.

    Attributes:
        histograms: Values whose distribution is wanted.
        means: Values whose channel means are wanted -> their channel axis.
        without: Values -> channels (last axis) that their distribution leaves out.
    """

    histograms: tuple[str, ...]
    means: Mapping[str, int]
    without: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Every value to observe."""
        return tuple(dict.fromkeys([*self.histograms, *self.means]))


class StatisticsCollector:
    """Statistics of several tensors under construction.

    Args:
        wanted: What to look at.
        first: Number of the first sample, for messages.
    """

    def __init__(self, wanted: Wanted, first: int = 0) -> None:
        self._wanted, self._first = wanted, first
        self._accumulators = {name: HistogramAccumulator() for name in wanted.histograms}
        self._means: dict[str, ChannelMean] = {}
        self._pending: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted.histograms}
        self._num_samples = 0

    def update(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Add one sample's tensors, in the order of `names`.

        Raises:
            CalibrationError: A tensor holds NaN or infinity; names it and the sample.
        """
        axes, without = self._wanted.means, self._wanted.without
        for name, array in zip(self._wanted.names, arrays, strict=True):
            values = array.astype(np.float32, copy=False)
            if not np.isfinite(values.sum(dtype=np.float64)):
                raise CalibrationError(
                    f"tensor {name!r} is NaN or infinite on calibration sample {self._first + self._num_samples}; "
                    "expected finite activations, check the weights and the sample's preprocessing"
                )
            if name in axes and values.size:
                mean = ChannelMean.of(values, axes[name])
                self._means[name] = self._means[name].merge(mean) if name in self._means else mean
            if name in self._pending:
                inner = np.delete(values, without[name], -1) if name in without else values
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
    wanted: Wanted,
    *,
    custom_ops: Sequence[str | Path] = (),
    engine: Engine = HERE,
) -> CalibrationStatistics:
    """Statistics of inner tensors over a calibration set.

    Args:
        model: Prepared float model.
        feeds: Samples; consumed once, one after the other.
        wanted: Which values to observe.
        custom_ops: Libraries the model needs.
        engine: Where samples run. Threads hand on single tensors, machines the statistics of parts of the set.

    Returns:
        The statistics; the same, bit for bit, with any engine.

    Raises:
        CalibrationError: There was no sample, or a tensor is not finite.
    """
    if not wanted.names:  # weights alone: the samples still count
        return CalibrationStatistics({}, {}, _counted(feeds))
    if not isinstance(engine, Threads):
        form = ir.to_proto(exposed(model, wanted.names)).SerializeToString()
        parts = engine.map(_collect_part, _Common(form, wanted, tuple(custom_ops)), _parts(feeds))
        whole = next(parts, None)
        if whole is None:
            raise CalibrationError("the calibration set holds no sample; expected at least one")
        return functools.reduce(CalibrationStatistics.merge, parts, whole)
    collector = StatisticsCollector(wanted)
    with session_of(exposed(model, wanted.names), custom_ops=custom_ops) as session:

        def forward(_common: None, feed: Feed) -> list[NDArray[Any]]:
            return run(session, dict(feed), wanted.names)

        for arrays in engine.map(forward, None, feeds):
            collector.update(arrays)
    return collector.value()


@dataclass(frozen=True)
class _Common:
    """What all parts of a calibration need."""

    model: bytes
    wanted: Wanted
    custom_ops: tuple[str | Path, ...]


@dataclass(frozen=True)
class _Part:
    """Some samples, and the number of the first."""

    first: int
    feeds: list[Feed]


def _parts(feeds: Iterable[Feed]) -> Iterator[_Part]:
    """Of as many samples each, wherever they run: they depend on the data alone."""
    stream, first = iter(feeds), 0
    while part := list(itertools.islice(stream, PART)):
        yield _Part(first, part)
        first += len(part)


def _collect_part(common: _Common, part: _Part) -> CalibrationStatistics:
    """On some machine: the statistics of a part."""
    collector = StatisticsCollector(common.wanted, part.first)
    with session_of(common.model, custom_ops=common.custom_ops) as session:
        for feed in part.feeds:
            collector.update(run(session, dict(feed), common.wanted.names))
    return collector.value()


def _counted(feeds: Iterable[Feed]) -> int:
    count = sum(1 for _ in feeds)
    if not count:
        raise CalibrationError("the calibration set holds no sample; expected at least one")
    return count
