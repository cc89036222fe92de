"""The layers of a network that lost channels one after the other, each seen with what those before it give by now.

Two networks walk side by side over some samples: the original one and the one without the channels. Before each layer
both stop, the moments of what it reads are taken, its weights are fitted, and the changed network walks on with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ptq.calibration.replay import in_chunks
from ptq.calibration.segments import SegmentedRun
from ptq.calibration.store import ArrayStore
from ptq.core.arrays import Feed
from ptq.core.channel_refit import Halves, PairMoments
from ptq.core.layer import LinearLayer
from ptq.core.unfold import Unfold
from ptq.passes.channels.refit_weights import RefitLayer

MAX_ROWS = 64
"""Positions of one sample that enter a second moment, evenly spread."""

MOST_COLUMNS = 2048
"""Inputs of a feature up to which each tap of a kernel may learn from all others; a system of that size is solved."""

LEAST_ROWS = 4
"""Positions per such input; with fewer, taps learn from their own position alone."""


@dataclass(frozen=True)
class View:
    """How the inputs of a layer become rows, and its weights a matrix over them.

    Attributes:
        taps: Taps whose weights are features of their own, as each sees channels at its own position alone; 1 where a
            row is all that a feature reads.
    """

    taps: int

    def rows(self, layer: LinearLayer, values: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
        """Return what a layer reads. Shape [positions, inputs]."""
        if self.taps == 1:
            rows: NDArray[np.float32] = layer.unfold.rows(values, limit)[0]
            return rows
        own: NDArray[np.float32] = Unfold().rows(np.moveaxis(values, 1, -1), limit)[0]
        return own

    def matrix(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a weight [features, channels * taps] over such rows."""
        apart = weight.reshape(len(weight), -1, self.taps).transpose(0, 2, 1)
        return apart.reshape(-1, apart.shape[-1])

    def weight(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a matrix over such rows as a weight; the inverse of `matrix`."""
        apart = matrix.reshape(-1, self.taps, matrix.shape[-1]).transpose(0, 2, 1)
        return apart.reshape(len(apart), -1)


def walk(
    model: ir.Model,
    changed: ir.Model,
    layers: Sequence[RefitLayer],
    feeds: Iterable[Feed],
    store: ArrayStore,
    custom_ops: Sequence[str | Path] = (),
) -> Iterator[tuple[RefitLayer, View, Halves]]:
    """Walk over layers, in dataflow order.

    Args:
        model: Original network.
        changed: The network without channels; a layer's weights are to be changed before the next one is asked for.
        layers: Layers to stop at.
        feeds: Samples.
        store: Store in which values wait between layers.
        custom_ops: Libraries the models need.

    Yields:
        Each layer, how to look at it, and its moments over two halves of the samples: one if there is but one sample;
        layers of which nothing was seen are passed over.
    """
    stages = dict[str, list[RefitLayer]]()
    for layer in layers:
        stages.setdefault(layer.changed.source, []).append(layer)
    stops = [(source,) for source in stages]
    runs = [SegmentedRun(each, stops, store, f"refit {i}", custom_ops) for i, each in enumerate((model, changed))]
    sizes = list[int]()
    for chunk in in_chunks(model, feeds, custom_ops):
        sizes.append(chunk.size)
        for run in runs:
            run.feed(chunk.feed)
    for stage in stages.values():
        values = zip(*(run.advance() for run in runs), strict=True)
        yield from _moments(stage, sizes, values)
    for run in runs:
        run.close()


_Pair = tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]
"""Values that the original and the changed network give a layer on a chunk, one of each."""


def _moments(
    stage: Sequence[RefitLayer], sizes: Sequence[int], values: Iterable[_Pair]
) -> list[tuple[RefitLayer, View, Halves]]:
    """Add up the moments of layers that read one value, those of every other chunk apart."""
    views = [View(_taps(layer.original, MAX_ROWS * sum(sizes))) for layer in stage]
    sums: list[dict[int, tuple[PairMoments, PairMoments]]] = [{} for _ in stage]
    with threadpool_limits(1, "blas"):
        for index, (size, ((original,), (given,))) in enumerate(zip(sizes, values, strict=True)):
            for layer, view, own in zip(stage, views, sums, strict=True):
                part = _of_chunk(layer, view, (original, given), size)
                if part is not None:
                    before = own.get(index % 2)
                    rows, means = part if before is None else map(PairMoments.merge, before, part)
                    own[index % 2] = rows, means
    parts = [tuple(own[half] for half in sorted(own)) for own in sums]
    return [each for each in zip(stage, views, parts, strict=True) if each[2]]


def _taps(layer: LinearLayer, rows: int) -> int:
    """Return how many taps are fitted apart from each other: all, or 1 where they are fitted as one."""
    columns = layer.fan_in
    together = columns <= MOST_COLUMNS and columns * LEAST_ROWS <= rows
    return 1 if together else int(np.prod(layer.unfold.kernel, dtype=np.int64))


def _of_chunk(
    layer: RefitLayer, view: View, values: tuple[NDArray[np.float32], NDArray[np.float32]], size: int
) -> tuple[PairMoments, PairMoments] | None:
    """Compute the moments of a chunk, over positions and over samples' means; None if the networks differ in sizes."""
    original, given = values
    if layer.original.unfold.kernel and original.shape[2:] != given.shape[2:]:
        return None
    rows = view.rows(layer.changed, given, MAX_ROWS * size), view.rows(layer.original, original, MAX_ROWS * size)
    if len(rows[0]) != len(rows[1]) or not len(rows[0]):
        return None
    means = [np.stack([own.mean(0) for own in np.array_split(each, size)]) for each in rows]
    return PairMoments.of(*rows), PairMoments.of(*means)
