"""What was seen over a calibration set, or over parts of it; as a file, with what it is valid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptq.core.archive import freeze, thaw
from ptq.core.channel_mean import ROWS, ChannelMean
from ptq.core.errors import InputError
from ptq.core.statistics import MAGNITUDES, Histogram
from ptq.files.whole import read_regular_file, write_whole

LARGEST = 2**32
"""Bytes of a file of statistics."""


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
class CalibrationRecord:
    """What was seen, on which samples, and in what network.

    Attributes:
        origin: What the statistics depend on besides the samples: name -> hash or version.
        parts: Number of a part of the calibration set -> SHA-256 of its samples.
        statistics: Of all these parts together.
    """

    origin: Mapping[str, str]
    parts: Mapping[int, str]
    statistics: CalibrationStatistics

    def require(self, origin: Mapping[str, str]) -> None:
        """Refuse to stand for something else.

        Raises:
            InputError: Names what differs.
        """
        for name in sorted({*self.origin, *origin}):
            found, expected = self.origin.get(name, "none"), origin.get(name, "none")
            if found != expected:
                raise InputError(
                    f"made for another {name}: expected {expected[:16]}, found {found[:16]}; run `ptq calibrate` again"
                )

    def merge(self, other: CalibrationRecord) -> CalibrationRecord:
        """Both together; exact, in any order.

        Raises:
            InputError: They belong to different networks, or a part is in both.
        """
        self.require(other.origin)
        twice = sorted(self.parts.keys() & other.parts.keys())
        if twice:
            raise InputError(f"part {twice[0]} of the calibration set is in it a second time; merge each shard once")
        parts = dict(sorted({**self.parts, **other.parts}.items()))
        return CalibrationRecord(self.origin, parts, self.statistics.merge(other.statistics))

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all. Equal records give equal bytes.

        Raises:
            InputError: It cannot be written.
        """
        write_whole(Path(path), freeze(self))

    @staticmethod
    def load(path: str | Path) -> CalibrationRecord:
        """Read what `save` wrote.

        Raises:
            InputError: It is missing, damaged, or something else.
        """
        return CalibrationRecord.of(
            read_regular_file(Path(path), LARGEST, "a file of statistics", "calibrate fewer samples"), str(path)
        )

    @staticmethod
    def of(data: bytes, where: str) -> CalibrationRecord:
        """The record in some bytes.

        Raises:
            InputError: They hold none; names `where`.
        """
        try:
            found = thaw(data, (CalibrationRecord, CalibrationStatistics, Histogram, ChannelMean))
            _check(found)
        except InputError as error:
            raise InputError(f"{where}: no calibration statistics: {error}; run `ptq calibrate` again") from error
        return found  # type: ignore[no-any-return]


def _check(found: object) -> None:
    """A file may claim anything: what would not work as statistics is refused here."""
    if not isinstance(found, CalibrationRecord) or not isinstance(found.statistics, CalibrationStatistics):
        raise InputError("something else")
    seen = found.statistics
    texts = {**found.origin, **{str(part): text for part, text in found.parts.items()}}
    sound = (
        all(isinstance(key, str) and isinstance(text, str) for key, text in texts.items())
        and all(isinstance(part, int) and part >= 0 for part in found.parts)
        and isinstance(seen.num_samples, int)
        and all(isinstance(each, Histogram) and _is_histogram(each) for each in seen.histograms.values())
        and all(isinstance(each, ChannelMean) and _is_mean(each) for each in seen.means.values())
    )
    if not sound:
        raise InputError("its numbers contradict each other")


def _is_histogram(found: Histogram) -> bool:
    whole = all(each.dtype == np.int64 and each.ndim == 1 for each in (found.bins, found.counts))
    if not whole or len(found.bins) != len(found.counts) or not isinstance(found.rmin + found.rmax, float):
        return False
    within = bool(
        (np.abs(found.bins) < MAGNITUDES).all() and (found.counts > 0).all() and (np.diff(found.bins) > 0).all()
    )
    return within and (not len(found.bins) or -np.inf < found.rmin <= found.rmax < np.inf)


def _is_mean(found: ChannelMean) -> bool:
    return found.table.dtype == np.int64 and found.table.ndim == 2 and len(found.table) == ROWS and found.count > 0
