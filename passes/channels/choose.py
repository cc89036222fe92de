"""Which groups of channels may leave, by what is known of every place where a layer sums over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ptq.core.arrays import Float
from ptq.core.channel_spread import NOBODY, Multiples
from ptq.passes.channels.fold import Told
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Mask


@dataclass(frozen=True)
class Evidence:
    """Knowledge of the channels that layers sum over, along one axis.

    Attributes:
        constant: Whether a channel always has the same value. Shape [channels].
        values: That value. Shape [channels].
        multiples: Channels that are a multiple of another one.
        width: How much each was seen to move: of those that may leave, the quietest leave first. Shape [channels].
        tiny: Magnitude up to which a constant is as good as 0.
    """

    constant: Mask
    values: Float
    multiples: Multiples
    width: Float
    tiny: float = 0.0

    @staticmethod
    def none(count: int) -> Evidence:
        """Return that nothing is known of some channels."""
        nobody = Multiples(np.full(count, NOBODY), np.zeros(count))
        return Evidence(np.zeros(count, np.bool_), np.zeros(count), nobody, np.zeros(count))


@dataclass(frozen=True)
class Leaving:
    """Groups that may leave.

    Attributes:
        groups: The channels of the model.
        evidence: What is known, by axis.
        removed: Which groups go. Shape [groups].
    """

    groups: ChannelGroups
    evidence: Mapping[Axis, Evidence]
    removed: Mask

    def leaves(self, axis: Axis) -> bool:
        """Whether anything leaves an axis."""
        return bool(self.removed[self.groups.axes[axis]].any())

    @property
    def told(self) -> dict[tuple[str, int], Told]:
        """Knowledge at each axis that is summed over, by name and place."""
        told = {}
        for axis, known in self.evidence.items():
            gone = self.removed[self.groups.axes[axis]]
            if gone.any():
                plain, leaders, factors = _grounds(self.groups, axis, known)
                led = np.flatnonzero(gone & ~plain)
                mix = np.zeros((len(gone), len(gone))) if len(led) else None
                if mix is not None:
                    mix[led, leaders[led]] = factors[led]
                told[str(axis.value.name), axis.axis] = Told(np.where(plain, known.values, 0.0), mix)
        return told


def choose(groups: ChannelGroups, evidence: Mapping[Axis, Evidence], lanes: int) -> Leaving:
    """Find all groups that may leave.

    Args:
        groups: The channels of a model.
        evidence: Axis that layers sum over -> what is known there; nothing is known elsewhere.
        lanes: Between convolutions, as many channels stay as fill a multiple of this.
    """
    stays, needs, width = groups.fixed.copy(), list[tuple[int, int]](), np.zeros(len(groups.fixed))
    for axis in groups.sources:
        at = groups.axes[axis]
        known = evidence.get(axis)
        if known is None:
            stays[at] = True
            continue
        plain, leaders, _ = _grounds(groups, axis, known)
        stays[at[~plain & (leaders == NOBODY)]] = True
        led = np.flatnonzero(~plain & (leaders != NOBODY))
        needs.extend(zip(at[led].tolist(), at[leaders[led]].tolist(), strict=True))
        np.maximum.at(width, at, known.width / max(float(known.width.max(initial=0.0)), 1e-300))
    stays |= ~_removable(groups)
    _settle(stays, needs)
    _fill(groups, stays, width, lanes)
    return Leaving(groups, evidence, ~stays)


def _removable(groups: ChannelGroups) -> Mask:
    """Whether a group has anything in a weight, and is summed over by something."""
    summed = np.zeros(len(groups.fixed), np.bool_)
    for axis in groups.sources:
        summed[groups.axes[axis]] = True
    return summed


def _grounds(groups: ChannelGroups, axis: Axis, known: Evidence) -> tuple[Mask, np.ndarray, Float]:
    """Return which channels are constants, and leaders and factors of the others.

    Where zeros are padded around, constants that are not 0 are multiples of the first of them, and so are the zeros.
    """
    reads = groups.sources[axis]
    takes = all(read.takes_constants for read in reads)
    own = all(read.takes_multiples and len(read.weight.value.uses()) == 1 for read in reads)
    leaders, factors = known.multiples.leaders.copy(), known.multiples.factors.copy()
    plain = known.constant & (takes | (np.abs(known.values) <= known.tiny))
    if not takes:
        others = np.flatnonzero(known.constant & ~plain)
        leaders[others[:1]] = NOBODY
        leaders[others[1:]], factors[others[1:]] = others[:1], known.values[others[1:]] / known.values[others[:1]]
    return plain, leaders if own else np.full_like(leaders, NOBODY), factors


def _settle(stays: Mask, needs: list[tuple[int, int]]) -> None:
    """Keep what others are a multiple of."""
    for group, leader in needs:
        if not stays[group]:
            if group == leader:
                stays[group] = True
            else:
                stays[leader] = True


def _fill(groups: ChannelGroups, stays: Mask, width: Float, lanes: int) -> None:
    """Keep one channel of every axis, and between convolutions a multiple of what their kernels take at once."""
    changed = True
    while changed:
        changed = False
        for axis, at in groups.axes.items():
            for group in _missing(at, stays, width, lanes if axis in groups.wide else 1):
                stays[group] = changed = True


def _missing(at: np.ndarray, stays: Mask, width: Float, lanes: int) -> Iterator[int]:
    """Yield the groups that have to stay for an axis to have enough positions, those that move most first."""
    left = int(stays[at].sum())
    if left == len(at):
        return
    wanted = max(-(-left // lanes) * lanes, 1)
    spare = np.unique(at[~stays[at]])
    for group in sorted(spare.tolist(), key=lambda each: (-width[each], each)):
        if left >= min(wanted, len(at)):
            return
        left += int((at == group).sum())
        yield group
