"""Run the float model over the calibration set and fold what its inner tensors do into statistics.

Samples are run one at a time by sessions with a single thread each, side by side on the machine's cores, and the
statistics add up exactly: the result does not depend on the order, the chunking or the number of workers. Memory is
bounded by the tensors of the samples in flight, never by their number.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.executor import LOCAL, Executor, Threads
from ptq.calibration.record import CalibrationRecord, CalibrationStatistics
from ptq.calibration.shards import CalibrationShards, Numbered
from ptq.core.archive import freeze
from ptq.core.channel_mean import ChannelMean
from ptq.core.errors import CalibrationError
from ptq.core.statistics import HistogramAccumulator
from ptq.models.sessions import run, session_of
from ptq.passes.infer_shapes import exposed

Feed = Mapping[str, NDArray[Any]]
FLUSH = 1 << 18  # values gathered per tensor before they are counted: a count has a fixed cost


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
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._accumulators = {name: HistogramAccumulator() for name in wanted.histograms}
        self._means: dict[str, ChannelMean] = {}
        self._pending: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted.histograms}
        self._num_samples = 0

    def update(self, arrays: Sequence[NDArray[Any]], number: int) -> None:
        """Add one sample's tensors, in the order of `names`.

        Args:
            arrays: The tensors.
            number: Of the sample, for messages.

        Raises:
            CalibrationError: A tensor holds NaN or infinity; names it and the sample.
        """
        axes, without = self._wanted.means, self._wanted.without
        for name, array in zip(self._wanted.names, arrays, strict=True):
            values = array.astype(np.float32, copy=False)
            if not np.isfinite(values.sum(dtype=np.float64)):
                raise CalibrationError(
                    f"tensor {name!r} is NaN or infinite on calibration sample {number}; "
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
    engine: Executor = LOCAL,
    ledger: CalibrationShards | None = None,
) -> CalibrationRecord:
    """Statistics of inner tensors over a calibration set.

    Args:
        model: Prepared float model.
        feeds: Samples; consumed once, one after the other.
        wanted: Which values to observe.
        custom_ops: Libraries the model needs.
        engine: Where samples run. Threads hand on single tensors, machines the statistics of parts of the set.
        ledger: Which parts are done already, and which are to be done here; default: all, here.

    Returns:
        The statistics; the same, bit for bit, with any engine and however the parts were shared out.

    Raises:
        CalibrationError: There was no sample, or a tensor is not finite.
        InputError: What the ledger knows is about something else.
    """
    ledger, form = (
        ledger or CalibrationShards(),
        ir.to_proto(exposed(model, wanted.names)).SerializeToString(deterministic=True),
    )
    ledger.open(_origin(form, wanted, custom_ops) | {"size of parts": str(ledger.part_size)})
    pending = ledger.pending(feeds)
    common = _Common(form, wanted, tuple(custom_ops))
    if not wanted.names:  # weights alone: the samples still count
        count = sum(1 for _ in pending)
        return ledger.record(CalibrationStatistics({}, {}, count) if count else None)
    if isinstance(engine, Threads):
        return ledger.record(_collect_here(common, pending, engine, ledger))
    whole: CalibrationStatistics | None = None
    for part in engine.map(_collect_part, common, _parts(pending, ledger.part_size)):
        whole = part if whole is None else whole.merge(part)
        ledger.note(whole.num_samples, functools.partial(replace, whole))
    return ledger.record(whole)


def _origin(form: bytes, wanted: Wanted, custom_ops: Sequence[str | Path]) -> dict[str, str]:
    """What statistics depend on besides the samples."""
    digest = hashlib.sha256(freeze((wanted.histograms, wanted.means, wanted.without)))
    for library in custom_ops:
        digest.update(Path(library).read_bytes())
    origin = {"model or recipe": hashlib.sha256(form).hexdigest(), "settings": digest.hexdigest()}
    return origin | {f"version of {name}": version(name) for name in ("ptq", "onnxruntime", "numpy")}


def _collect_here(
    common: _Common, pending: Iterable[Numbered], engine: Threads, ledger: CalibrationShards
) -> CalibrationStatistics | None:
    """Sample by sample, so that nothing but the tensors of those in flight is held."""
    collector, done = StatisticsCollector(common.wanted), 0
    with session_of(common.model, custom_ops=common.custom_ops) as session:

        def forward(_common: None, sample: Numbered) -> tuple[int, list[NDArray[Any]]]:
            return sample[0], run(session, dict(sample[1]), common.wanted.names)

        for done, (number, arrays) in enumerate(engine.map(forward, None, pending), 1):
            collector.update(arrays, number)
            ledger.note(done, collector.value)
    return collector.value() if done else None


@dataclass(frozen=True)
class _Common:
    """What all parts of a calibration need."""

    model: bytes
    wanted: Wanted
    custom_ops: tuple[str | Path, ...]


def _parts(pending: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Of as many samples each, wherever they run: they depend on the data alone."""
    stream = iter(pending)
    while part := list(itertools.islice(stream, size)):
        yield part


def _collect_part(common: _Common, part: list[Numbered]) -> CalibrationStatistics:
    """On some machine: the statistics of a part."""
    collector = StatisticsCollector(common.wanted)
    with session_of(common.model, custom_ops=common.custom_ops) as session:
        for number, feed in part:
            collector.update(run(session, dict(feed), common.wanted.names), number)
    return collector.value()
