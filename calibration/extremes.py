"""Channel extremes of inner tensors over two halves of a calibration set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.parallel import in_order
from ptq.core.channel_extremes import ChannelExtremes
from ptq.models.sessions import run, session_of
from ptq.passes.infer_shapes import exposed

Feed = Mapping[str, NDArray[Any]]


def collect_extremes(
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Feed],
    *,
    axis: int = -1,
    custom_ops: Sequence[str | Path] = (),
) -> dict[str, tuple[ChannelExtremes, ChannelExtremes]]:
    """Channel extremes of inner tensors: over the samples with even, and over those with odd numbers.

    Args:
        model: Prepared float model.
        names: Values to look at.
        feeds: Samples; consumed once.
        axis: Where the channels are.
        custom_ops: Libraries the model needs.

    Returns:
        Value name -> the two halves; of a single sample, twice the same.
    """
    halves: tuple[dict[str, ChannelExtremes], dict[str, ChannelExtremes]] = ({}, {})
    with session_of(exposed(model, names), custom_ops=custom_ops) as session:

        def forward(feed: Feed) -> list[ChannelExtremes]:
            return [ChannelExtremes.of(array, axis) for array in run(session, dict(feed), names)]

        for index, parts in enumerate(in_order(forward, feeds, os.cpu_count() or 1)):
            half = halves[index % 2]
            for name, part in zip(names, parts, strict=True):
                half[name] = half[name].merge(part) if name in half else part
    return {name: (first, halves[1].get(name, first)) for name, first in halves[0].items()}
