"""Records of calibration: statistics of a set, or of parts of it, as a file with what it is valid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ptq.calibration.statistics import ExtremesOf, HistogramOf, LevelOf, MeanOf, SpreadOf
from ptq.core.archive import freeze, thaw
from ptq.core.channel_extremes import ChannelExtremes, HalvedExtremes
from ptq.core.channel_mean import ROWS, ChannelMean
from ptq.core.channel_spread import ChannelSpread
from ptq.core.errors import InputError
from ptq.core.statistics import MAGNITUDES, Histogram
from ptq.core.tree_sum import TreeSum
from ptq.files.whole import read_regular_file, write_whole

LARGEST = 2**32
"""Most bytes of a file of statistics."""


@dataclass(frozen=True)
class CalibrationStatistics:
    """Statistics of a model's values over a calibration set.

    Attributes:
        values: Value name -> tag of a statistic -> what was seen. A value that was empty in all samples has no mean.
        num_samples: Number of samples that were run.
    """

    values: Mapping[str, Mapping[str, Any]]
    num_samples: int

    def merge(self, other: CalibrationStatistics) -> CalibrationStatistics:
        """Merge the statistics of two sets; exact, so no order or split of the samples changes a bit."""
        values = {
            name: _merged(seen, other.values.get(name, {})) for name, seen in {**other.values, **self.values}.items()
        }
        return CalibrationStatistics(values, self.num_samples + other.num_samples)

    def of(self, tag: str) -> dict[str, Any]:
        """Return the statistic with that tag of every value that has it, by the value's name."""
        return {name: seen[tag] for name, seen in self.values.items() if tag in seen}

    @property
    def histograms(self) -> dict[str, Histogram]:
        """Distribution of each value that has one, by the value's name."""
        return self.of(HistogramOf.tag)

    @property
    def means(self) -> dict[str, ChannelMean]:
        """Mean per channel of each value that has one, by the value's name."""
        return self.of(MeanOf.tag)

    @property
    def levels(self) -> dict[str, ChannelMean]:
        """Mean square of a sample, dB, averaged over samples, of each value that has one, by the value's name."""
        return self.of(LevelOf.tag)

    @property
    def halves(self) -> dict[str, tuple[ChannelExtremes, ChannelExtremes]]:
        """Channel extremes over the two halves of the set of each value that has them, by the value's name."""
        return {name: seen.halves for name, seen in self.of(ExtremesOf.tag).items()}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    both = {tag: first[tag].merge(second[tag]) for tag in first if tag in second}
    return {**second, **first, **both}


@dataclass(frozen=True)
class StageRecord:
    """Statistics of one pass, with the samples and the network that they were seen in.

    Attributes:
        origin: What the statistics depend on besides the samples: name -> hash or version.
        parts: Number of a part of the calibration set -> SHA-256 of its samples.
        statistics: Statistics of all these parts together.
    """

    origin: Mapping[str, str]
    parts: Mapping[int, str]
    statistics: CalibrationStatistics

    def require(self, origin: Mapping[str, str]) -> None:
        """Refuse a record of another network, other settings or other versions.

        Raises:
            InputError: Names what differs.
        """
        for name in sorted({*self.origin, *origin}):
            found, expected = self.origin.get(name, "none"), origin.get(name, "none")
            if found != expected:
                raise InputError(
                    f"made for another {name}: expected {expected[:16]}, found {found[:16]}; run `ptq calibrate` again"
                )

    def merge(self, other: StageRecord) -> StageRecord:
        """Merge the records of two sets of parts; exact, in any order.

        Raises:
            InputError: They belong to different networks, or a part is in both.
        """
        self.require(other.origin)
        twice = sorted(self.parts.keys() & other.parts.keys())
        if twice:
            raise InputError(f"part {twice[0]} of the calibration set is in it a second time; merge each shard once")
        parts = dict(sorted({**self.parts, **other.parts}.items()))
        return StageRecord(self.origin, parts, self.statistics.merge(other.statistics))


@dataclass(frozen=True)
class CalibrationRecord:
    """Statistics of a calibration set, pass by pass; as a file it lets machines share the work.

    Attributes:
        stages: Name of a pass -> what was seen in it, in the order of the passes.
    """

    stages: Mapping[str, StageRecord] = field(default_factory=dict)

    @property
    def latest(self) -> StageRecord:
        """Record of the last pass."""
        return list(self.stages.values())[-1]

    @property
    def described(self) -> str:
        """Numbers of samples and parts of the last pass, in words."""
        return f"{self.latest.statistics.num_samples} samples in {len(self.latest.parts)} parts"

    @property
    def is_first_round(self) -> bool:
        """Whether only channels were observed: ranges are seen later, in a network that depends on the channels."""
        return bool(self.stages) and RANGES not in self.stages

    def with_stage(self, name: str, record: StageRecord) -> CalibrationRecord:
        """Return a record with one more pass."""
        return CalibrationRecord({**self.stages, name: record})

    def merge(self, other: CalibrationRecord) -> CalibrationRecord:
        """Merge the records of several shards; exact, in any order.

        Passes before the last one belong to all parts: they have to be equal.

        Raises:
            InputError: They hold different passes, belong to different networks, or a part is in both.
        """
        names, others = tuple(self.stages), tuple(other.stages)
        if names != others:
            raise InputError(
                f"holds {', '.join(others)} where the others hold {', '.join(names)}; merge shards of the same round"
            )
        earlier = names[:-1]
        for name in earlier:
            if freeze(self.stages[name]) != freeze(other.stages[name]):
                raise InputError(f"its {name} is that of another run; merge shards that went on from the same file")
        last = self.latest.merge(other.latest)
        return CalibrationRecord({**{name: self.stages[name] for name in earlier}, names[-1]: last})

    def save(self, path: str | Path) -> None:
        """Write the record to a file, whole or not at all. Equal records give equal bytes.

        Raises:
            InputError: It cannot be written.
        """
        write_whole(Path(path), freeze(self))

    @staticmethod
    def load(path: str | Path) -> CalibrationRecord:
        """Read a record from a file that `save` wrote.

        Raises:
            InputError: It is missing, damaged, or something else.
        """
        return CalibrationRecord.of(
            read_regular_file(Path(path), LARGEST, "a file of statistics", "calibrate fewer samples"), str(path)
        )

    @staticmethod
    def of(data: bytes, where: str) -> CalibrationRecord:
        """Read a record from bytes.

        Raises:
            InputError: They hold none; names `where`.
        """
        try:
            record = thaw(data, KINDS)
            _check(record)
        except InputError as error:
            raise InputError(f"{where}: no calibration statistics: {error}; run `ptq calibrate` again") from error
        return record  # type: ignore[no-any-return]


SILENT, CHANNELS, RANGES = "silent", "channels", "ranges"
"""Names of the passes: over channels that may carry nothing, those that are evened out, and values that get a grid."""

KINDS = (
    CalibrationRecord, StageRecord, CalibrationStatistics, Histogram, ChannelMean, ChannelSpread, HalvedExtremes,
    TreeSum,
)  # fmt: skip


def _check(record: object) -> None:
    """Refuse what would not work as statistics: a file may claim anything."""
    if not isinstance(record, CalibrationRecord) or not record.stages:
        raise InputError("something else")
    if not all(isinstance(name, str) and is_sound(stage) for name, stage in record.stages.items()):
        raise InputError("its numbers contradict each other")


def is_sound(record: object) -> TypeGuard[StageRecord]:
    """Whether an object from a file works as the record of a pass."""
    if not isinstance(record, StageRecord) or not isinstance(record.statistics, CalibrationStatistics):
        return False
    texts, statistics = {**record.origin, **{str(part): text for part, text in record.parts.items()}}, record.statistics
    return (
        all(isinstance(key, str) and isinstance(text, str) for key, text in texts.items())
        and all(isinstance(part, int) and part >= 0 for part in record.parts)
        and isinstance(statistics.num_samples, int)
        and all(isinstance(tags, Mapping) for tags in statistics.values.values())
        and all(_is_seen(tag, each) for tags in statistics.values.values() for tag, each in tags.items())
    )


def _is_seen(tag: str, statistic: object) -> bool:
    match statistic:
        case Histogram():
            return tag == HistogramOf.tag and _is_histogram(statistic)
        case ChannelMean():
            return tag in (MeanOf.tag, LevelOf.tag) and _is_mean(statistic)
        case ChannelSpread():
            return tag == SpreadOf.tag and _is_spread(statistic)
        case HalvedExtremes():
            return tag == ExtremesOf.tag and _is_extremes(statistic)
        case _:
            return False


def _is_histogram(histogram: Histogram) -> bool:
    whole = all(each.dtype == np.int64 and each.ndim == 1 for each in (histogram.bins, histogram.counts))
    if (
        not whole
        or len(histogram.bins) != len(histogram.counts)
        or not isinstance(histogram.rmin + histogram.rmax, float)
    ):
        return False
    within = bool(
        (np.abs(histogram.bins) < MAGNITUDES).all()
        and (histogram.counts > 0).all()
        and (np.diff(histogram.bins) > 0).all()
    )
    return within and (not len(histogram.bins) or -np.inf < histogram.rmin <= histogram.rmax < np.inf)


def _is_mean(mean: ChannelMean) -> bool:
    return mean.table.dtype == np.int64 and mean.table.ndim == 2 and len(mean.table) == ROWS and mean.count > 0


def _is_spread(spread: ChannelSpread) -> bool:
    parts = (spread.low, spread.high, spread.low_of_highs, spread.high_of_lows, spread.apart)
    plain = all(each.dtype == np.float64 and each.ndim == 1 and each.shape == spread.low.shape for each in parts)
    return plain and bool((spread.apart >= 0).all()) and not any(np.isnan(each).any() for each in parts)


def _is_extremes(extremes: HalvedExtremes) -> bool:
    bounds = (extremes.low, extremes.high, extremes.least)
    if not all(each.dtype == np.float64 and each.shape == extremes.low.shape and each.ndim == 2 for each in bounds):
        return False
    if len(extremes.low) != 2 or len(extremes.squares) != 2 or len(extremes.positions) != 2:
        return False
    sums = [(key, node) for half in extremes.squares for key, node in half.nodes.items()]
    return (
        bool(
            (extremes.low <= 0).all() and (extremes.high >= 0).all() and np.isfinite(extremes.low + extremes.high).all()
        )
        and all(isinstance(count, int) and count >= 0 for count in extremes.positions)
        and all(isinstance(key, int) and key >= 0 for key, _ in sums)
        and all(node.dtype == np.float64 and node.shape == extremes.low.shape[1:] for _, node in sums)
        and all(bool((node >= 0).all()) for _, node in sums)
    )
