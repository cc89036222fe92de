"""Parts of a calibration set, and which are done: by an earlier run, by other machines, or to be done here.

A part is a fixed number of samples that follow one another, so that parts depend on the data alone. Each is known by
the hash of its samples: statistics of other samples are never taken for those of these.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ptq.calibration.record import KINDS, CalibrationRecord, CalibrationStatistics, StageRecord, is_sound
from ptq.calibration.sample import digest_with
from ptq.core.arrays import Feed
from ptq.core.errors import CalibrationError, InputError
from ptq.files.checkpoints import Checkpoints

Numbered = tuple[int, Feed]
PART = 32
"""Number of samples of a part; they go to a machine together."""


@dataclass(frozen=True)
class Shard:
    """A share of the parts: each `count`-th one, from `index` on.

    Attributes:
        index: From 0.
        count: Shards altogether.
    """

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class _Done:
    """A part that was run here: its number, its hash, and how many samples had been run when it ended."""

    part: int
    digest: str
    samples: int


@dataclass
class StageShards:
    """The parts of one pass over a calibration set, known or to be done here.

    Attributes:
        shard: Share of the parts that is to be done here.
        known: Record of the parts that are done already; None if there are none.
        source: File that `known` came from and that has to cover the whole set: nothing is run here. Empty if not.
        checkpoints: What an interrupted pass goes on from.
        part_size: Samples of a part.
        origin: What the statistics depend on besides the samples; known once a pass has begun.
    """

    shard: Shard = field(default_factory=Shard)
    known: StageRecord | None = None
    source: str = ""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    part_size: int = field(default_factory=lambda: PART)
    origin: Mapping[str, str] = field(default_factory=dict)
    _done: list[_Done] = field(default_factory=list)

    def open(self, origin: Mapping[str, str]) -> None:
        """Begin a pass: check what is known against it, or restore what an interrupted run left.

        Args:
            origin: What statistics depend on besides the samples.

        Raises:
            InputError: What is known was seen in another network.
        """
        self.origin = origin
        if self.known is not None:
            with self._named():
                self.known.require(origin)
        else:
            found = self.checkpoints.restore(self._key, KINDS)
            self.known = found if is_sound(found) else None

    def pending(self, feeds: Iterable[Feed]) -> Iterator[Numbered]:
        """Yield the samples that have to be run here, with their numbers in the set.

        Raises:
            InputError: What is known is about other samples, or about fewer than it should be.
        """
        known = {} if self.known is None else self.known.parts
        stream, part, given = enumerate(feeds), 0, 0
        while (first := next(stream, None)) is not None:
            digest = hashlib.sha256()
            here = part not in known and part % self.shard.count == self.shard.index
            if part not in known and self.source:
                raise InputError(f"{self.source}: part {part} of the calibration set is missing; merge every shard")
            for index, feed in itertools.chain([first], itertools.islice(stream, self.part_size - 1)):
                digest_with(digest, feed)
                if here:
                    given += 1
                    yield index, feed
            if here:
                self._done.append(_Done(part, digest.hexdigest(), given))
            elif known.get(part, digest.hexdigest()) != digest.hexdigest():
                raise InputError(self._other(f"part {part} holds other samples"))
            part += 1
        if known and max(known) >= part:
            raise InputError(self._other(f"it covers part {max(known)}, this set ends with {part - 1}"))

    def note(self, samples: int, statistics: Callable[[], CalibrationStatistics]) -> None:
        """Keep, once in a while, what an interrupted run can go on from.

        Args:
            samples: Number of pending samples that are in the statistics.
            statistics: Function that gives the statistics.
        """
        whole = [done for done in self._done if done.samples <= samples]
        if self.checkpoints.due and whole and whole[-1].samples == samples:
            self.checkpoints.keep(self._key, self._with(statistics(), whole))

    def record(self, statistics: CalibrationStatistics | None) -> StageRecord:
        """Return the record of all parts, those known before included.

        Args:
            statistics: Statistics of all pending samples; None if there was none.

        Raises:
            CalibrationError: There is nothing.
        """
        if statistics is not None:
            return self._with(statistics, self._done)
        if self.known is not None:
            return self.known
        if self.shard.count > 1:
            raise CalibrationError(
                f"shard {self.shard.index + 1} of {self.shard.count} is empty: parts have {self.part_size} samples; "
                "take fewer shards"
            )
        raise CalibrationError("the calibration set holds no sample; expected at least one")

    def _with(self, statistics: CalibrationStatistics, done: Sequence[_Done]) -> StageRecord:
        here = StageRecord(self.origin, {each.part: each.digest for each in done}, statistics)
        return here if self.known is None else self.known.merge(here)

    @property
    def _key(self) -> str:
        return json.dumps(["calibration", dict(self.origin)], sort_keys=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.source}: {error}") from error

    def _other(self, reason: str) -> str:
        if self.source:
            return f"{self.source}: made from another calibration set ({reason}); run `ptq calibrate` again"
        self.checkpoints.drop(self._key)
        return f"an interrupted run had another calibration set ({reason}); what it left is gone now, run again"


@dataclass(frozen=True)
class CalibrationShards:
    """Records of a calibration set known already, and the share of it that is run here, pass by pass.

    A model whose activations are evened out is looked at twice: the second pass sees the network that the first one
    made. A shard of several cannot begin the second pass before the first is known of all parts.

    Attributes:
        shard: Share of the parts that is to be done here.
        known: Record of what is done already.
        source: File that `known` came from. Empty if there is none.
        checkpoints: What an interrupted pass goes on from.
        complete: Whether `known` has to cover everything: nothing is run here.
    """

    shard: Shard = field(default_factory=Shard)
    known: CalibrationRecord = field(default_factory=CalibrationRecord)
    source: str = ""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    complete: bool = False

    def stage(self, name: str) -> StageShards:
        """Return the parts of one pass; if the pass is known, all parts have to be.

        Args:
            name: Name of the pass.

        Raises:
            InputError: Everything has to be known, and this pass is not.
        """
        known = self.known.stages.get(name)
        if known is None and self.complete:
            stages = ", ".join(self.known.stages) or "nothing"
            raise InputError(
                f"{self.source}: holds {stages}, but not {name}; run `ptq calibrate` again, with --calibration "
                f"{self.source} if it is the first of two rounds, or without"
            )
        return StageShards(self.shard, known, "" if known is None else self.source, self.checkpoints)

    def must_wait(self, name: str) -> bool:
        """Whether later passes need what other machines see in this one."""
        return self.shard.count > 1 and name not in self.known.stages
