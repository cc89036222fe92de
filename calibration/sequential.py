"""The layers of a network one after the other, each seen with what its already quantized predecessors give it.

Two networks walk side by side over the calibration set: the float one, and the lowered one with the very integers
that will be delivered. At every input of a linear layer both stop, the layer's moments are taken, the layer is solved,
and its codes are written into the lowered network before that walks on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ptq.calibration.executor import LOCAL, Executor
from ptq.calibration.segments import SegmentedRun
from ptq.calibration.store import ArrayStore
from ptq.core.affine import QuantParams, dequantize
from ptq.core.damping import LayerMoments
from ptq.core.encoding import WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.layer_statistics import LayerStatistics, MomentSum
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.unfold import Unfold
from ptq.models.sessions import run, session_of
from ptq.passes.graph import initializer_of
from ptq.passes.insert_qdq import lower_layers
from ptq.passes.placement import Placement

Feed = Mapping[str, NDArray[Any]]
Float = NDArray[np.float64]

MAX_ROWS = 64
"""Positions of one sample that enter a second moment, evenly spread: neighbours in an image say much the same."""

CHUNK_BYTES = 4 * 2**20
"""Size of the model inputs that are run at once: enough to make one call worth its cost."""

MAX_CHUNK = 16

TOGETHER = 2**20
"""Values of a layer's input from which a second moment is taken: it costs about as much for fewer."""

SAME = 1e-3  # of the largest output: how far a batch may differ from its samples one by one


@dataclass(frozen=True)
class Chunk:
    """Samples that are run at once.

    Attributes:
        feed: Model inputs.
        size: Number of samples.
    """

    feed: Feed
    size: int


class SampleReplay:
    """The calibration set kept for a second look.

    Args:
        store: Where the samples wait, and later what the networks make of them.
        custom_ops: Libraries the model needs.
        engine: Where moments are computed.
    """

    def __init__(self, store: ArrayStore, custom_ops: Sequence[str | Path] = (), engine: Executor = LOCAL) -> None:
        self.store, self.custom_ops, self.engine = store, tuple(custom_ops), engine
        self._names: list[tuple[str, ...]] = []

    def record(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Pass samples through and keep a copy."""
        for feed in feeds:
            for name, array in feed.items():
                self.store.put((len(self._names), name), array)
            self._names.append(tuple(feed))
            yield feed

    def extend(self, feeds: Iterable[Feed]) -> int:
        """Keep further samples; how many there were."""
        return sum(1 for _ in self.record(feeds))

    def replay(self, *, keep: bool = False) -> Iterator[Feed]:
        """The samples again; unless they are to be kept, each is forgotten as it is given."""
        for index, names in enumerate(tuple(self._names)):
            yield {name: self.store.get((index, name)) for name in names}
            for name in () if keep else names:
                self.store.drop((index, name))
        self._names = self._names if keep else []


class SequentialWalk:
    """The walk over one model.

    Args:
        model: Prepared float model.
        placement: Which nodes run on integers.
        plan: A first decision about everything; its weights are replaced as they are solved.
        layers: The layers to stop at, in dataflow order.
        samples: The calibration set.
        survey: Whether the float network goes on to the outputs, for whoever looks at what errors of the layers do
            there, and the samples are needed again.

    Attributes:
        float_run: The float network on its way.
        sizes: Samples in each of its chunks.
    """

    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        plan: QuantPlan,
        layers: Sequence[LinearLayer],
        samples: SampleReplay,
        *,
        survey: bool = False,
    ) -> None:
        self._lowered_model = model.clone()
        self._lowered = lower_layers(self._lowered_model, plan, placement, compact=False)
        self._model, self._plan = model, plan
        self._stages = _stages(layers)
        stops: list[tuple[str, ...]] = [(stage[0].source,) for stage in self._stages]
        if survey:
            stops.append(tuple(str(value.name) for value in model.graph.outputs))
        codes = [(self._lowered[stage[0].name].source,) for stage in self._stages]
        store, self._custom_ops, self._engine = samples.store, samples.custom_ops, samples.engine
        self.float_run = SegmentedRun(model, stops, store, "float", self._custom_ops)
        self._quantized_run = SegmentedRun(self._lowered_model, codes, store, "quantized", self._custom_ops)
        self.sizes: list[int] = []
        for chunk in _chunks(model, samples.replay(keep=survey), self._custom_ops):
            self.sizes.append(chunk.size)
            self.float_run.feed(chunk.feed)
            self._quantized_run.feed(chunk.feed)

    def layers(self) -> Iterator[tuple[LinearLayer, LayerMoments]]:
        """Each layer with its moments; `install` it before going on."""
        for stage in self._stages:
            yield from self._moments(stage)
        self.float_run.close()
        self._quantized_run.close()

    def install(self, layer: LinearLayer, encoding: WeightEncoding, bias: BiasEncoding | FloatBias | None) -> None:
        """Let the quantized network go on with the layer's final numbers."""
        self._lowered[layer.name].rewrite(self._lowered_model.graph, encoding, bias)

    def _moments(self, stage: list[LinearLayer]) -> list[tuple[LinearLayer, LayerMoments]]:
        weights = {layer.name: layer.layout.to_matrix(initializer_of(self._model, layer.weight)) for layer in stage}
        alike: dict[Unfold, list[LinearLayer]] = {}
        for layer in stage:
            alike.setdefault(layer.unfold, []).append(layer)
        seen = {unfold: _Moments(layers, _side_by_side(layers, weights)) for unfold, layers in alike.items()}
        grid = self._plan.activations.get(stage[0].source)
        values = zip(self.sizes, self.float_run.advance(), self._quantized_run.advance(), strict=True)
        common = _Common(grid, tuple((unfold, moments.weight) for unfold, moments in seen.items()))
        with threadpool_limits(1, "blas"):  # one product per core, not every core in one product
            for half, parts in self._engine.map(_measure, common, _together(values)):
                for moments, part in zip(seen.values(), parts, strict=True):
                    moments.add(half, part)
        return [(layer, seen[layer.unfold].of(layer)) for layer in stage]


_Values = tuple[int, list[NDArray[Any]], list[NDArray[Any]]]
"""Samples of a chunk, what the float network gives a layer there, and what the quantized one gives it."""

_Together = tuple[int, list[_Values]]
"""Which half of the set, and chunks of it."""

_Rows = tuple[NDArray[Any], NDArray[Any], int]
"""Rows of the quantized and the float network, and of how many samples."""

_Parts = tuple[LayerStatistics, LayerStatistics]


@dataclass(frozen=True)
class _Common:
    """What the moments of all chunks of a stage need: the grid of its input, unfoldings, and the weights they meet."""

    grid: QuantParams | None
    unfolds: tuple[tuple[Unfold, NDArray[np.float32]], ...]


def _measure(common: _Common, part: _Together) -> tuple[int, list[_Parts]]:
    """On some machine: moments of the rows of some chunks, and of the means of their samples."""
    half, chunks = part
    rows: list[list[_Rows]] = [[] for _ in common.unfolds]
    for size, (original,), (codes,) in chunks:
        given, limit = codes if common.grid is None else dequantize(codes, common.grid), MAX_ROWS * size
        for own, (unfold, _) in zip(rows, common.unfolds, strict=True):
            own.append((unfold.rows(given, limit), unfold.rows(original, limit), size))
    return half, [_moments_of(own, weight) for own, (_, weight) in zip(rows, common.unfolds, strict=True)]


def _moments_of(chunks: list[_Rows], weight: NDArray[np.float32]) -> _Parts:
    given, floats, sizes = zip(*chunks, strict=True)
    means, float_means = (
        np.concatenate([_sample_means(*each) for each in zip(side, sizes, strict=True)], 1) for side in (given, floats)
    )
    rows, float_rows = (np.concatenate(side, 1) for side in (given, floats))
    return LayerStatistics.of(rows, weight, float_rows), LayerStatistics.of(means, weight, float_means)


@dataclass
class _Moments:
    """Moments under construction, for layers that read the same rows."""

    layers: list[LinearLayer]
    weight: NDArray[np.float32]
    parts: dict[tuple[str, int], MomentSum] = field(default_factory=dict)

    def add(self, half: int, parts: _Parts) -> None:
        """Add moments to one half of the set."""
        for kind, part in zip(("rows", "pooled"), parts, strict=True):
            self.parts.setdefault((kind, half), MomentSum()).add(part)

    def of(self, layer: LinearLayer) -> LayerMoments:
        """The moments with the output energy of one of the layers."""
        sizes = [each.layout.shape[each.layout.out_axis] // each.unfold.groups for each in self.layers]
        start = sum(sizes[: self.layers.index(layer)])
        stop = start + sizes[self.layers.index(layer)]
        sums = {key: part.value() for key, part in self.parts.items()}
        own = {key: replace(part, energy=part.energy[:, start:stop]) for key, part in sums.items()}
        return LayerMoments(*(tuple(own[kind, i] for i in (0, 1) if (kind, i) in own) for kind in ("rows", "pooled")))


def _sample_means(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """Mean row of each sample of a chunk. Shape [groups, samples, in]."""
    return np.stack([own.mean(1) for own in np.array_split(rows, size, 1)], 1)


def _together(values: Iterable[_Values]) -> Iterator[_Together]:
    """Chunks of each half of the set in turns, several at once where they are small."""
    waiting: tuple[list[_Values], list[_Values]] = ([], [])
    for index, chunk in enumerate(values):
        own = waiting[index % 2]
        own.append(chunk)
        if sum(codes.size for _, _, (codes,) in own) >= TOGETHER:
            yield index % 2, list(own)
            own.clear()
    for half, own in enumerate(waiting):
        if own:
            yield half, own


def _chunks(model: ir.Model, feeds: Iterable[Feed], custom_ops: Sequence[str | Path]) -> Iterator[Chunk]:
    """Samples of equal shapes, stacked."""
    waiting: dict[tuple[tuple[str, Any], ...], list[Feed]] = {}
    size = 0
    for feed in feeds:
        size = size or _chunk_size(model, feed, custom_ops)
        alike = waiting.setdefault(tuple(_shapes(feed).items()), [])
        alike.append(feed)
        if len(alike) == size:
            yield _stack(alike)
            alike.clear()
    for alike in waiting.values():
        if alike:
            yield _stack(alike)


def _chunk_size(model: ir.Model, first: Feed, custom_ops: Sequence[str | Path]) -> int:
    """How many samples the model takes at once; 1 unless its first axis is free and a batch changes nothing."""
    if any(
        value.shape is None or not len(value.shape) or isinstance(value.shape[0], int) for value in model.graph.inputs
    ):
        return 1
    outputs = [str(value.name) for value in model.graph.outputs]
    with session_of(model, custom_ops=custom_ops) as session:
        alone = run(session, dict(first), outputs)
        try:
            both = run(session, dict(_stack([first, first]).feed), outputs)
        except Exception:
            return 1
    for one, two in zip(alone, both, strict=True):
        twice = np.concatenate([one, one]) if one.ndim else one
        if two.shape != twice.shape or not np.allclose(two, twice, atol=SAME * float(np.abs(one).max(initial=1e-30))):
            return 1
    num_bytes = sum(array.nbytes for array in first.values())
    return int(min(max(CHUNK_BYTES // max(num_bytes, 1), 1), MAX_CHUNK))


def _stages(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Layers by the value they read, in the order of the first of each: its predecessors all come before."""
    stages: dict[str, list[LinearLayer]] = {}
    for layer in layers:
        stages.setdefault(layer.source, []).append(layer)
    return list(stages.values())


def _side_by_side(layers: list[LinearLayer], weights: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Weights of layers that read the same rows as one, group by group."""
    groups = layers[0].unfold.groups
    parts = [weights[layer.name] for layer in layers]
    width = parts[0].shape[-1]
    return np.concatenate([part.reshape(groups, -1, width) for part in parts], axis=1).reshape(-1, width)


def _shapes(feed: Feed) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, str(array.dtype)) for name, array in feed.items()}


def _stack(feeds: list[Feed]) -> Chunk:
    if len(feeds) == 1:
        return Chunk(feeds[0], 1)
    return Chunk({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}, len(feeds))
