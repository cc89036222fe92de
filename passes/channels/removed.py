"""Note of the channels that left a model, kept in its metadata: with it the float model loses the same ones again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.channel_spread import ChannelSpread
from ptq.passes.channels.choose import Leaving
from ptq.passes.channels.fold import Told
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Mask
from ptq.passes.channels.remove import RemoveChannels
from ptq.passes.infer_shapes import observe

REMOVED = "ai.ptq.removed"
"""Key in the metadata: "value:axis" -> the positions that left, a bit each, in hexadecimal digits.

Beside them, where some were multiples: [position, position of the leader, factor] of each."""


REFITTED = "ai.ptq.refitted"
"""Key in the metadata: names of the layers whose weights are others than those of the float model on purpose."""


def refitted_in(model: ir.Model) -> frozenset[str]:
    """Return the names of the layers whose weights were fitted to fewer channels."""
    try:
        names = json.loads(model.metadata_props.get(REFITTED, "[]"))
    except ValueError:  # somebody else's metadata
        return frozenset()
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()


def note_of(leaving: Leaving) -> str:
    """Write down which channels leave: along as few axes as name every group, and all that holds multiples."""
    led = {
        key: tuple((int(i), int(j), float(told.mix[i, j])) for i, j in zip(*np.nonzero(told.mix), strict=True))
        for key, told in leaving.told.items()
        if told.mix is not None
    }
    return _note(leaving.groups, leaving.removed, led)


def note_with(whole: ir.Model | None, model: ir.Model, groups: ChannelGroups, removed: Mask) -> str:
    """Write down which channels leave a model that has lost some already, and those that it has lost.

    Args:
        whole: The model before; None if nothing has left it.
        model: The model by now.
        groups: Its channels.
        removed: Which groups of them leave. Shape [groups].
    """
    if whole is None:
        return _note(groups, removed, {})
    before, left = ChannelGroups.of(whole), left_of(model)
    gone = _removed(before, left)
    now = {(str(axis.value.name), axis.axis): removed[at] for axis, at in groups.axes.items()}
    both = gone.copy()
    for axis, at in before.axes.items():
        more, stayed = now.get((str(axis.value.name), axis.axis)), at[~gone[at]]
        if more is not None and len(more) == len(stayed):
            both[stayed[more]] = True
    return _note(before, both, {key: each.led for key, each in left.items()})


def _note(groups: ChannelGroups, removed: Mask, led: Mapping[tuple[str, int], Sequence[tuple[int, int, float]]]) -> str:
    told, rows = np.zeros(len(removed), np.bool_), dict[str, str | list[Any]]()
    for axis in groups.sources:
        at, name = groups.axes[axis], str(axis.value.name)
        own = list(map(list, led.get((name, axis.axis), ())))
        if own or (removed[at] & ~told[at]).any():
            told[at] = True
            digits = np.packbits(removed[at]).tobytes().hex()
            rows[f"{name}:{axis.axis}"] = [digits, own] if own else digits
    return json.dumps(rows, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Left:
    """Channels that left along one axis.

    Attributes:
        mask: A bit per position, and more behind.
        led: Those that were multiples: their positions, those of their leaders, and how many times those they were.
    """

    mask: Mask
    led: tuple[tuple[int, int, float], ...] = ()

    def mix(self, count: int) -> NDArray[np.float64] | None:
        """Return how the kept positions make up those that were multiples. Shape [count, count]; None for none."""
        found = np.zeros((count, count))
        for place, leader, factor in self.led:
            if 0 <= place < count and 0 <= leader < count:
                found[place, leader] = factor
        return found if found.any() else None


def left_of(model: ir.Model) -> dict[tuple[str, int], Left]:
    """Return which channels left a model, by name and axis of a value."""
    found = {}
    try:
        for key, row in json.loads(model.metadata_props.get(REMOVED, "{}")).items():
            name, _, axis = key.rpartition(":")
            digits, led = (row, ()) if isinstance(row, str) else row
            mask = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).astype(np.bool_)
            found[name, int(axis)] = Left(mask, tuple((int(i), int(j), float(f)) for i, j, f in led))
    except (ValueError, AttributeError, TypeError):  # somebody else's metadata
        return {}
    return found


def _removed(groups: ChannelGroups, left: Mapping[tuple[str, int], Left]) -> Mask:
    """Return which groups left, by the positions that did."""
    removed = np.zeros(len(groups.fixed), np.bool_)
    for axis, at in groups.axes.items():
        gone = left.get((str(axis.value.name), axis.axis))
        if gone is not None:
            removed[at[: len(gone.mask)][gone.mask[: len(at)]]] = True
    return np.asarray(removed & ~groups.fixed)


def count_removed(model: ir.Model) -> int:
    """Count the channels that left a model."""
    return sum(int(left.mask.sum()) for left in left_of(model).values())


def without_removed(
    model: ir.Model,
    quantized: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    custom_ops: Sequence[str | Path] = (),
) -> ir.Model:
    """Return a float model without the channels that left a quantized one, or the model itself if none did.

    Args:
        model: Prepared float model. Not modified.
        quantized: The model made of it.
        feed: A sample: what the channels are constant for.
        custom_ops: Libraries the models need.
    """
    left = left_of(quantized)
    groups = ChannelGroups.of(model)
    removed = _removed(groups, left)
    if not removed.any() or any(removed[at].all() for at in groups.axes.values() if len(at)):
        return model
    axes = [axis for axis in groups.sources if removed[groups.axes[axis]].any()]
    arrays = observe(model, [str(axis.value.name) for axis in axes], feed, custom_ops)
    told = {}
    for axis, array in zip(axes, arrays, strict=True):
        key, at = (str(axis.value.name), axis.axis), groups.axes[axis]
        mix = left[key].mix(len(at)) if key in left else None
        silent = removed[at] if mix is None else removed[at] & ~mix.any(1)
        told[key] = Told(np.where(silent, ChannelSpread.of(array, axis.axis).middle, 0.0), mix)
    changed = model.clone()
    RemoveChannels(removed, told)(changed)
    return changed
