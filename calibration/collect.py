"""Run the float model over the calibration set and fold what its inner tensors do into statistics.

Samples are run one at a time by sessions with a single thread each, side by side on the machine's cores, and the
statistics add up exactly: the result does not depend on the order, the chunking or the number of workers. Memory is
bounded by the tensors of the samples in flight, never by their number.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.calibration.executor import LOCAL, Executor, Threads
from ptq.calibration.record import CalibrationStatistics, StageRecord
from ptq.calibration.shards import Numbered, StageShards
from ptq.calibration.statistics import Gatherer, Wanted
from ptq.core.arrays import Feed
from ptq.core.errors import CalibrationError
from ptq.models.lean import message_without_weights
from ptq.models.sessions import run, session_of
from ptq.passes.infer_shapes import exposed

Contribution = list[list[Any]]
"""Contribution of one sample to each statistic of each value."""


class StatisticsCollector:
    """Statistics of several values under construction.

    Args:
        wanted: Value name -> statistics to take of it.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._gatherers: dict[str, dict[str, Gatherer]] = {
            name: {statistic.tag: statistic.gatherer() for statistic in statistics}
            for name, statistics in wanted.items()
        }
        self._num_samples = 0

    def update(self, contribution: Contribution) -> None:
        """Add one sample: what `contribution_of` gave."""
        for gatherers, parts in zip(self._gatherers.values(), contribution, strict=True):
            for gatherer, part in zip(gatherers.values(), parts, strict=True):
                gatherer.add(part)
        self._num_samples += 1

    def value(self) -> CalibrationStatistics:
        """Return the statistics of all samples so far.

        Raises:
            CalibrationError: Nothing was.
        """
        if not self._num_samples:
            raise CalibrationError("the calibration set holds no sample; expected at least one")
        values = {
            name: {tag: value for tag, gatherer in gatherers.items() if (value := gatherer.value()) is not None}
            for name, gatherers in self._gatherers.items()
        }
        return CalibrationStatistics(values, self._num_samples)


def contribution_of(wanted: Wanted, arrays: Sequence[NDArray[Any]], number: int) -> Contribution:
    """Compute what one sample adds to the statistics.

    Args:
        wanted: Value name -> statistics to take of it.
        arrays: The values on that sample, in the order of `wanted`.
        number: Number of the sample in the set.

    Raises:
        CalibrationError: A tensor holds NaN or infinity; names it and the sample.
    """
    parts = []
    for (name, statistics), array in zip(wanted.items(), arrays, strict=True):
        values = array.astype(np.float32, copy=False)
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise CalibrationError(
                f"tensor {name!r} is NaN or infinite on calibration sample {number}; "
                "expected finite activations, check the weights and the sample's preprocessing"
            )
        parts.append([statistic.of(values, number) for statistic in statistics])
    return parts


def collect(
    model: ir.Model,
    feeds: Iterable[Feed],
    wanted: Wanted,
    *,
    custom_ops: Sequence[str | Path] = (),
    engine: Executor = LOCAL,
    shards: StageShards | None = None,
) -> StageRecord:
    """Run a model over a calibration set and return the statistics of its inner tensors.

    Args:
        model: Prepared float model.
        feeds: Samples; consumed once, one after the other.
        wanted: Value name -> statistics to take of it.
        custom_ops: Libraries the model needs.
        engine: Executor that runs samples. Threads hand on single tensors, machines the statistics of parts of the set.
        shards: Parts that are done already, and those to be done here; default: all, here.

    Returns:
        The statistics; the same, bit for bit, with any engine and however the parts were shared out.

    Raises:
        CalibrationError: There was no sample, or a tensor is not finite.
        InputError: The shards' records are about something else.
    """
    shards = shards or StageShards()
    shown = exposed(model, tuple(wanted))
    shards.open(_origin(_digest(shown), wanted, custom_ops) | {"size of parts": str(shards.part_size)})
    pending = shards.pending(feeds)
    if not wanted:  # weights alone: the samples still count
        count = sum(1 for _ in pending)
        return shards.record(CalibrationStatistics({}, count) if count else None)
    if isinstance(engine, Threads):
        return shards.record(_collect_here(_Common(shown, dict(wanted), tuple(custom_ops)), pending, engine, shards))
    common = _Common(ir.to_proto(shown).SerializeToString(), dict(wanted), tuple(custom_ops))
    whole: CalibrationStatistics | None = None
    for part in engine.map(_statistics_of_part, common, _parts(pending, shards.part_size)):
        whole = part if whole is None else whole.merge(part)
        shards.note(whole.num_samples, functools.partial(replace, whole))
    return shards.record(whole)


def _digest(model: ir.Model) -> str:
    """Return a SHA-256 of a model: of its graph, then of each large weight, none of which is copied."""
    message, weights = message_without_weights(model)
    digest = hashlib.sha256(message.SerializeToString(deterministic=True))
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def _origin(model: str, wanted: Wanted, custom_ops: Sequence[str | Path]) -> dict[str, str]:
    """Describe what statistics depend on besides the samples: name -> hash or version."""
    asked = [[name, *map(repr, statistics)] for name, statistics in wanted.items()]
    digest = hashlib.sha256(repr(asked).encode())
    for library in custom_ops:
        digest.update(Path(library).read_bytes())
    origin = {"model or recipe": model, "settings": digest.hexdigest()}
    return origin | {f"version of {name}": version(name) for name in ("ptq", "onnxruntime", "numpy")}


@dataclass(frozen=True)
class _Common:
    """The model, the values wanted and the libraries: alike for all parts of a calibration."""

    model: ir.Model | bytes
    wanted: Wanted
    custom_ops: tuple[str | Path, ...]

    def contribution(self, session: InferenceSession, sample: Numbered) -> Contribution:
        number, feed = sample
        return contribution_of(self.wanted, run(session, dict(feed), tuple(self.wanted)), number)


def _collect_here(
    common: _Common, pending: Iterable[Numbered], engine: Threads, shards: StageShards
) -> CalibrationStatistics | None:
    """Run sample by sample, so that nothing but the tensors of those in flight is held."""
    collector, done = StatisticsCollector(common.wanted), 0
    with session_of(common.model, custom_ops=common.custom_ops) as session:
        forward = functools.partial(_forward, session)
        for done, contribution in enumerate(engine.map(forward, common, pending), 1):
            collector.update(contribution)
            shards.note(done, collector.value)
    return collector.value() if done else None


def _forward(session: InferenceSession, common: _Common, sample: Numbered) -> Contribution:
    return common.contribution(session, sample)


def _parts(pending: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    """Cut the samples into parts of a fixed size: they depend on the data alone, wherever they run."""
    stream = iter(pending)
    while part := list(itertools.islice(stream, size)):
        yield part


def _statistics_of_part(common: _Common, part: list[Numbered]) -> CalibrationStatistics:
    """Compute the statistics of one part, on whatever machine this runs."""
    collector = StatisticsCollector(common.wanted)
    with session_of(common.model, custom_ops=common.custom_ops) as session:
        for sample in part:
            collector.update(common.contribution(session, sample))
    return collector.value()
