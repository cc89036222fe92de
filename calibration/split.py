"""One pass over a data reader, a part of it put aside: samples that ranges are chosen on should not also judge them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ptq.calibration.reader import DataReader, Sample
from ptq.calibration.sample import digest_with
from ptq.core.arrays import Feed
from ptq.core.errors import CalibrationError

EVERY = 8
"""Each eighth sample is held out."""

MAX_HELD = 32
MAX_HELD_BYTES = 256 * 2**20
AHEAD_BYTES = 64 * 2**20
FALLBACK = 4  # samples kept for a set too small to hold any out


@dataclass
class SampleSplit:
    """A calibration set being read once, some samples held out; counts and hashes what was read.

    Attributes:
        held_out: Samples that were not calibrated on.
        num_calibration: Samples that were.
        expected: Samples that will be, if the data says how many it has.
    """

    _samples: Iterator[Sample]
    first: Sample
    hold_out: bool
    held_out: list[Sample] = field(default_factory=list)
    num_calibration: int = 0
    expected: int | None = None
    _early: list[Sample] = field(default_factory=list)
    _held_bytes: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def calibration_feeds(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield the samples to calibrate on, in order."""
        for index, sample in enumerate(self._samples):
            digest_with(self._digest, sample.feed)
            if self._is_held(index) and self._has_room():
                self.held_out.append(sample)
                self._held_bytes += sum(array.nbytes for array in sample.feed.values())
                continue
            if len(self._early) < FALLBACK:
                self._early.append(sample)
            self.num_calibration += 1
            yield sample.feed

    def ahead(self, count: int) -> list[Feed]:
        """Return the first samples to calibrate on, which are given again later; fewer if they are large."""
        taken: list[Sample] = []
        num_bytes = 0
        for sample in itertools.islice(self._samples, count):
            taken.append(sample)
            num_bytes += sum(array.nbytes for array in sample.feed.values())
            if num_bytes > AHEAD_BYTES:
                break
        self._samples = itertools.chain(taken, self._samples)
        return [sample.feed for index, sample in enumerate(taken) if not self._is_held(index)]

    def first_of(self, feeds: Iterable[Feed], count: int) -> list[Feed]:
        """Return those of the samples to calibrate on, given again, that `ahead` would have returned."""
        taken: list[Feed] = []
        again, num_bytes = iter(feeds), 0
        for index in range(count):
            held = self._is_held(index) and index // EVERY < len(self.held_out)
            feed = self.held_out[index // EVERY].feed if held else next(again, None)
            if feed is None or num_bytes > AHEAD_BYTES:
                break
            num_bytes += sum(array.nbytes for array in feed.values())
            taken.extend([] if held else [feed])
        return taken

    def _is_held(self, index: int) -> bool:
        return self.hold_out and index % EVERY == EVERY - 1

    @property
    def verification(self) -> list[Sample]:
        """Samples to verify on: the held-out ones, or for a tiny set the first few."""
        return self.held_out or self._early

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every sample read so far: names, types, shapes and values."""
        return str(self._digest.hexdigest())

    def _has_room(self) -> bool:
        return len(self.held_out) < MAX_HELD and self._held_bytes < MAX_HELD_BYTES


def split_samples(data: DataReader, *, hold_out: bool) -> SampleSplit:
    """Start reading a calibration set.

    Args:
        data: The set; iterated once.
        hold_out: Put every eighth sample aside.

    Returns:
        The split, its first sample already read.

    Raises:
        CalibrationError: The set is empty.
    """
    samples = iter(data)
    first = next(samples, None)
    if first is None:
        raise CalibrationError(f"{data.description} holds no sample; expected at least one")
    count = data.num_samples
    held = min((count or 0) // EVERY, MAX_HELD) if hold_out else 0
    expected = None if count is None else count - held
    return SampleSplit(itertools.chain([first], samples), first, hold_out, expected=expected)
