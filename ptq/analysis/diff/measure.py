"""Runs of the switchboard: everything in float, everything rounded, and one site after the other either way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.analysis.diff.board import Site, Switch, Switchboard
from ptq.analysis.diff.weights import Restored
from ptq.analysis.metrics import sqnr_db
from ptq.core.arrays import Feed
from ptq.models.sessions import run

Array = NDArray[Any]

GOOD_DB = 50.0
"""SQNR from which on the float network that was found counts as the float model."""

GAINED_DB = 1.0


@dataclass
class Tally:
    """Running sums of a value in two networks; where one is not finite, all of it is error."""

    signal: float = 0.0
    error: float = 0.0
    other: float = 0.0
    dot: float = 0.0

    def update(self, reference: Array, value: Array) -> None:
        """Add the value of both networks on one sample, where these give it the same size."""
        if reference.shape != value.shape:
            return
        a, b = reference.astype(np.float64).reshape(-1), value.astype(np.float64).reshape(-1)
        kept = np.isfinite(a)
        a, b = a[kept], np.where(np.isfinite(b[kept]), b[kept], 0.0)
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.dot += float(a @ b)
        self.error += float(np.square(a - b).sum())

    @property
    def sqnr_db(self) -> float:
        """Ratio of signal to error, dB."""
        return sqnr_db(self.signal, self.error)

    @property
    def cosine(self) -> float:
        """Cosine of all samples as one vector."""
        norms = float(np.sqrt(self.signal * self.other))
        return self.dot / norms if norms > 0 else float(self.error == 0)


@dataclass
class Outputs:
    """Running sums over the outputs of a model, each relative to its signal."""

    tallies: list[Tally] = field(default_factory=list)

    def update(self, reference: Sequence[Array], values: Sequence[Array]) -> None:
        """Add the outputs of both networks on one sample."""
        kinds = [array.dtype.kind == "f" for array in reference]
        self.tallies = self.tallies or [Tally() for _ in reference]
        for tally, is_float, a, b in zip(self.tallies, kinds, reference, values, strict=True):
            if (is_float or not any(kinds)) and a.dtype.kind in "fiub" and a.shape == b.shape:
                tally.update(a, b)

    @property
    def error(self) -> float:
        """Error energy over signal energy, summed over the outputs."""
        return sum(tally.error / max(tally.signal, 1e-300) for tally in self.tallies)

    @property
    def cosine(self) -> float:
        """Cosine of the output where it is lowest."""
        return min((tally.cosine for tally in self.tallies if tally.signal > 0), default=1.0)

    @property
    def sqnr_db(self) -> float:
        """SQNR of all outputs as one, dB."""
        return sqnr_db(sum(tally.signal > 0 for tally in self.tallies), self.error)


@dataclass(frozen=True)
class Panel:
    """An open switchboard, ready to run.

    Attributes:
        board: The graph.
        session: It, with all values of interest among its outputs.
        outputs: Outputs of the model.
        restored: Key of a parameter -> its float numbers.
    """

    board: Switchboard
    session: InferenceSession
    outputs: tuple[str, ...]
    restored: Mapping[str, Restored]

    def run(self, feed: Feed, rounded: Callable[[str], bool], names: Sequence[str] = ()) -> list[Array]:
        """Run any mixture of rounded and float places.

        Args:
            feed: One sample.
            rounded: Whether the place with this key is rounded.
            names: Values to return; default: the outputs.

        Returns:
            The values.
        """
        settings: dict[str, Array] = dict(feed)
        for site in self.board.sites:
            for switch in site.switches:
                settings[switch.key] = np.array(rounded(switch.key))
            for each in site.parameters:
                settings[each.key] = each.value if rounded(each.key) else self.restored[each.key].best
        return run(self.session, settings, list(names) or list(self.outputs))


def keys_of(site: Site) -> frozenset[str]:
    """Return the keys of everything that is switched with a site."""
    return frozenset([switch.key for switch in site.switches] + [each.key for each in site.parameters])


def parts_of(site: Site) -> tuple[frozenset[str], frozenset[str]]:
    """Return the keys of a site's constants, and those of its grids."""
    tables = {switch.key for switch in site.switches if switch.limits is None}
    constants = frozenset(part.key for part in site.parameters)
    return constants | tables, keys_of(site) - constants - tables


def settle(panel: Panel, feed: Feed, reference: Sequence[Array]) -> tuple[Panel, float]:
    """Decide whether scales of weights were evened out or are faults.

    What evening out does to one layer the next one undoes, so the float network tells: with a fault in it, it is not
    the float model.

    Args:
        panel: With every scale believed.
        feed: One sample.
        reference: What the float model gives on it.

    Returns:
        The panel with the scales that are believed, and how near its float network is to the float model, dB.
    """

    def score(restored: Mapping[str, Restored]) -> float:
        outputs, tried = Outputs(), Panel(panel.board, panel.session, panel.outputs, restored)
        outputs.update(reference, tried.run(feed, lambda _key: False))
        return outputs.sqnr_db

    best, current = score(panel.restored), dict(panel.restored)
    for site in panel.board.sites:
        constants = {part.key: current[part.key] for part in site.parameters}
        outliers = next((constant.outliers for constant in constants.values() if constant.outliers), [])
        for count in (1, 2, 4, len(outliers)):
            if best >= GOOD_DB or count > len(outliers):
                break
            tried = current | {key: constant.without(outliers[:count]) for key, constant in constants.items()}
            reached = score(tried)
            if reached > best + GAINED_DB:
                best, current = reached, tried
    return Panel(panel.board, panel.session, panel.outputs, current), best


@dataclass
class GridSeen:
    """Statistics of the values that came to a grid. Energies over all samples.

    Attributes:
        signal: Of the values.
        error: Of rounding and clipping.
        clipped: Of clipping alone.
        count: How many values.
        outside: How many were clipped.
        peak: Largest magnitude.
        channels: Largest magnitude of each channel.
    """

    signal: float = 0.0
    error: float = 0.0
    clipped: float = 0.0
    count: int = 0
    outside: int = 0
    peak: float = 0.0
    channels: Array | None = None

    def update(self, switch: Switch, plain: Array, rounded: Array) -> None:
        """Add the values before and after the grid on one sample."""
        values = plain.astype(np.float64)
        low, high = switch.limits or (-np.inf, np.inf)
        half = (high - low) / 510 if switch.limits else 0.0
        beyond = (values < low - half) | (values > high + half)
        self.signal += float(np.square(values).sum())
        self.error += float(np.square(values - rounded).sum())
        self.clipped += float(np.square(values - np.clip(values, low, high))[beyond].sum())
        self.count += values.size
        self.outside += int(beyond.sum())
        self.peak = max(self.peak, float(np.abs(values).max(initial=0.0)))
        reach = reach_by_channel(values)
        same = self.channels is not None and self.channels.shape == reach.shape
        self.channels = np.maximum(self.channels, reach) if same and self.channels is not None else reach


def reach_by_channel(values: Array) -> Array:
    """Return the largest magnitude of each channel: axis 1 of images and features, the last one of sequences."""
    axis = 1 if values.ndim in (2, 4, 5) else values.ndim - 1
    others = tuple(index for index in range(values.ndim) if index != axis)
    return np.asarray(np.abs(values).max(others, initial=0.0))


@dataclass
class Measured:
    """All measurements, summed over the samples.

    Attributes:
        whole: Everything rounded.
        alone: Set of keys -> error with these alone rounded.
        without: Set of keys -> error with these alone in float.
        layers: Site -> its result with everything rounded, against everything in float.
        grids: Key of a switch -> what came to it.
        parts: Concat -> largest magnitude of each of its parts.
    """

    whole: Outputs = field(default_factory=Outputs)
    alone: dict[frozenset[str], Outputs] = field(default_factory=dict)
    without: dict[frozenset[str], Outputs] = field(default_factory=dict)
    layers: dict[str, Tally] = field(default_factory=dict)
    grids: dict[str, GridSeen] = field(default_factory=dict)
    parts: dict[str, Array] = field(default_factory=dict)

    def shares(self, keys: frozenset[str]) -> tuple[float, float]:
        """Return the share of the final error that remains with these keys alone, and that which goes without them."""
        whole = max(self.whole.error, 1e-300)
        return self.alone[keys].error / whole, 1 - self.without[keys].error / whole


def measure(
    panel: Panel,
    feeds: Sequence[Feed],
    groups: Sequence[frozenset[str]],
    measured: Measured,
    say: Callable[[str], None],
) -> None:
    """Run every group of switches alone, and everything but it, and add up the errors.

    Args:
        panel: The switchboard.
        feeds: Samples.
        groups: What is switched together.
        measured: Where the errors go.
        say: Told how long it still takes.
    """
    clock, whole = Clock(2 * len(feeds) * len(groups), say), Outputs()
    for feed in feeds:
        reference = panel.run(feed, lambda _key: False)
        whole.update(reference, panel.run(feed, lambda _key: True))
        for keys in groups:
            measured.alone.setdefault(keys, Outputs()).update(reference, panel.run(feed, keys.__contains__))
            rest = panel.run(feed, lambda key, keys=keys: key not in keys)  # type: ignore[misc]
            measured.without.setdefault(keys, Outputs()).update(reference, rest)
            clock.step()
    measured.whole = whole


def look(panel: Panel, feed: Feed, measured: Measured) -> list[Array]:
    """Add one sample's values at every layer and grid; return the outputs with everything in float."""
    sites = panel.board.sites
    switches = [switch for site in sites for switch in site.switches]
    names = [name for name in dict.fromkeys((*panel.board.values, *panel.outputs)) if name not in feed]
    plain, rounded = (
        dict(feed) | dict(zip(names, panel.run(feed, lambda _key, on=on: on, names), strict=True))  # type: ignore[misc]
        for on in (False, True)
    )
    for site in sites:
        measured.layers.setdefault(site.name, Tally()).update(plain[site.value], rounded[site.value])
        reaches = np.array([np.abs(plain[part]).max(initial=0.0) for part in site.parts])
        measured.parts[site.name] = np.maximum(measured.parts.get(site.name, reaches), reaches)
    for switch in switches:
        measured.grids.setdefault(switch.key, GridSeen()).update(switch, plain[switch.source], plain[switch.rounded])
    return [plain[name] for name in panel.outputs]


class Clock:
    """An estimate of the time that is left, told after every step."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self._total, self._say, self._start, self._done = total, say, time.monotonic(), 0

    def step(self) -> None:
        """Count two more runs, and tell how long the rest will take."""
        self._done += 2
        left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        self._say(f"switching one layer at a time: {self._done} of {self._total} runs, {left:.0f} s left")
