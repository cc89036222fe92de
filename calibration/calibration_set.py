"""The calibration set of one run: read once, run over once for every pass that asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from ptq.calibration.collect import collect
from ptq.calibration.executor import Executor
from ptq.calibration.record import CalibrationRecord, CalibrationStatistics
from ptq.calibration.replay import SampleReplay
from ptq.calibration.shards import CalibrationShards
from ptq.calibration.split import SampleSplit
from ptq.calibration.statistics import Wanted
from ptq.core.arrays import Feed
from ptq.core.progress import Progress, counted


class RoundEnds(Exception):  # noqa: N818 - no error: there is no more to do on this machine
    """Raised when this shard has seen its share and the next pass depends on what all shards have seen.

    Attributes:
        record: Statistics of this shard's share.
    """

    def __init__(self, record: CalibrationRecord) -> None:
        super().__init__("the other shards have to be merged first")
        self.record = record


class CalibrationSet:
    """A calibration set that is run over in passes: each runs all samples, or a shard's, except those known already.

    Args:
        split: The set being read, a part of it held out.
        samples: Store in which samples wait for further passes.
        shards: Parts that are known already, and those that are run here.
        progress: Called with how far each pass is.
        is_random: Whether the samples are random numbers.

    Attributes:
        split: Set being read.
        samples: Store of samples.
        record: Statistics so far, pass by pass.
        progress: Called with how far each pass is.
        is_random: Whether the samples are random numbers.
    """

    def __init__(
        self,
        split: SampleSplit,
        samples: SampleReplay,
        shards: CalibrationShards,
        progress: Progress,
        *,
        is_random: bool = False,
    ) -> None:
        self.split, self.samples, self.record = split, samples, CalibrationRecord()
        self.progress, self.is_random = progress, is_random
        self._shards, self._begun = shards, False

    @property
    def first(self) -> Feed:
        """First sample of the set, as a feed."""
        return self.split.first.feed

    @property
    def custom_ops(self) -> Sequence[str | Path]:
        """Libraries of operators that the model needs."""
        return self.samples.custom_ops

    @property
    def executor(self) -> Executor:
        """Executor that samples are run by."""
        return self.samples.engine

    def ahead(self, count: int) -> list[Feed]:
        """Return the first samples without beginning a pass; fewer than `count` where they are large."""
        if not self._begun:
            return self.split.ahead(count)
        return self.split.first_of(self.samples.replay(keep=True), count)

    def observe(self, model: ir.Model, wanted: Wanted, stage: str, *, again: bool) -> CalibrationStatistics:
        """Run a model over the set.

        Args:
            model: Prepared float model.
            wanted: Value name -> statistics to take of it.
            stage: Name of the pass, under which its record is kept.
            again: Whether the samples will be wanted once more.

        Raises:
            CalibrationError: There was no sample, or a tensor is not finite.
            InputError: What is known is about something else.
            RoundEnds: The passes behind this one need what other shards see in it.
        """
        shards = self._shards.stage(stage)
        record = collect(
            model, self._pass(again), wanted, custom_ops=self.custom_ops, engine=self.executor, shards=shards
        )
        self.record = self.record.with_stage(stage, record)
        if again and self._shards.must_wait(stage):
            raise RoundEnds(self.record)
        return record.statistics

    def read(self) -> None:
        """Read the set to its end, if nothing has: those held out, and the hash of all, are known then."""
        if not self._begun:
            self._begun = True
            for _ in self.split.calibration_feeds():
                pass

    def _pass(self, again: bool) -> Iterable[Feed]:
        """Give the samples of a pass: the first time as they are read, later as they were kept."""
        if self._begun:
            return counted(self.samples.replay(keep=again), self.split.num_calibration, self.progress)
        self._begun = True
        self.progress("calibrate")
        feeds = counted(self.split.calibration_feeds(), self.split.expected, self.progress)
        return self.samples.record(feeds) if again else feeds
