"""Note of the channels that left a model, kept in its metadata: with it the float model loses the same ones again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.channel_spread import ChannelSpread
from ptq.passes.channels.choose import Evidence, Leaving
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Mask, extent
from ptq.passes.channels.remove import RemoveChannels
from ptq.passes.infer_shapes import observe

REMOVED = "ai.ptq.removed"
"""Key in the metadata: "value:axis" -> the positions that left, a bit each, in hexadecimal digits."""


def note_of(leaving: Leaving) -> str:
    """Write down which channels leave: along as few axes as name every group."""
    told, rows = np.zeros(len(leaving.removed), np.bool_), {}
    for axis in leaving.groups.sources:
        at = leaving.groups.axes[axis]
        if (leaving.removed[at] & ~told[at]).any():
            told[at] = True
            rows[f"{axis.value.name}:{axis.axis}"] = np.packbits(leaving.removed[at]).tobytes().hex()
    return json.dumps(rows, sort_keys=True, separators=(",", ":"))


def masks_of(model: ir.Model) -> dict[tuple[str, int], Mask]:
    """Return which channels left a model: name and axis of a value -> a bit per position, and more behind."""
    masks = {}
    try:
        for key, digits in json.loads(model.metadata_props.get(REMOVED, "{}")).items():
            name, _, axis = key.rpartition(":")
            masks[name, int(axis)] = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).astype(np.bool_)
    except (ValueError, AttributeError, TypeError):  # somebody else's metadata
        return {}
    return masks


def count_removed(model: ir.Model) -> int:
    """Count the channels that left a model."""
    return sum(int(mask.sum()) for mask in masks_of(model).values())


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
    masks = masks_of(quantized)
    if not masks:
        return model
    groups = ChannelGroups.of(model)
    removed = np.zeros(len(groups.fixed), np.bool_)
    for axis, at in groups.axes.items():
        mask = masks.get((str(axis.value.name), axis.axis))
        if mask is not None:
            gone = np.resize(np.concatenate([mask, np.zeros(len(at), np.bool_)]), len(at))
            removed[at[gone]] = True
    removed &= ~groups.fixed
    axes = [axis for axis in groups.sources if removed[groups.axes[axis]].any()]
    arrays = observe(model, [str(axis.value.name) for axis in axes], feed, custom_ops)
    evidence = {axis: _seen(axis, array) for axis, array in zip(axes, arrays, strict=True)}
    changed = model.clone()
    RemoveChannels(removed, Leaving(groups, evidence, removed).told)(changed)
    return changed


def _seen(axis: Axis, array: NDArray[Any]) -> Evidence:
    """Take one sample for what is known."""
    spread, nothing = ChannelSpread.of(array, axis.axis), Evidence.none(extent(axis) or 0)
    return replace(nothing, constant=np.ones_like(nothing.constant), values=spread.middle)
