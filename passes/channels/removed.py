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


def note_of(leaving: Leaving) -> str:
    """Write down which channels leave: along as few axes as name every group, and all that holds multiples."""
    told, rows = np.zeros(len(leaving.removed), np.bool_), dict[str, str | list[Any]]()
    known = leaving.told
    for axis in leaving.groups.sources:
        at, name = leaving.groups.axes[axis], str(axis.value.name)
        mix = known[name, axis.axis].mix if (name, axis.axis) in known else None
        led = () if mix is None else [[int(i), int(j), float(mix[i, j])] for i, j in zip(*np.nonzero(mix), strict=True)]
        if led or (leaving.removed[at] & ~told[at]).any():
            told[at] = True
            digits = np.packbits(leaving.removed[at]).tobytes().hex()
            rows[f"{name}:{axis.axis}"] = [digits, led] if led else digits
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
    removed = np.zeros(len(groups.fixed), np.bool_)
    for axis, at in groups.axes.items():
        gone = left.get((str(axis.value.name), axis.axis))
        if gone is not None:
            removed[at[: len(gone.mask)][gone.mask[: len(at)]]] = True
    removed &= ~groups.fixed
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
