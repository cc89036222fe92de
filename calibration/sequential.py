"""The layers of a network one after the other, each seen with what its already quantized predecessors give it.

Two networks walk side by side over the calibration set: the float one, and the lowered one with the very integers
that will be delivered. At every input of a linear layer both stop, the layer's moments are taken, the layer is solved,
and its codes are written into the lowered network before that walks on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ptq.calibration.deciding import deciding
from ptq.calibration.replay import SampleReplay, in_chunks
from ptq.calibration.segments import SegmentedRun
from ptq.core.affine import QuantParams, dequantize
from ptq.core.damping import LayerMoments, Pooled
from ptq.core.encoding import WeightEncoding
from ptq.core.layer import LinearLayer
from ptq.core.layer_statistics import LayerStatistics, MomentSum
from ptq.core.plan import BiasEncoding, FloatBias, QuantPlan
from ptq.core.sample_means import MeansKept, SampleMeans
from ptq.core.unfold import Unfold
from ptq.files.heap import trim
from ptq.passes.decisions import give, judged_values
from ptq.passes.graph import initializer_of
from ptq.passes.insert_qdq import lower_layers
from ptq.passes.placement import Placement

MAX_ROWS = 64
"""Positions of one sample that enter a second moment, evenly spread: neighbors in an image say much the same."""


FEW_INPUTS = 256
"""Inputs of a layer from which on the mean rows of samples are kept themselves: they are fewer than moments of them."""

TOGETHER, ROWS_TOGETHER = 2**20, 2**21
"""Values of a layer's input, or of the rows that it makes of them, from which a second moment is taken: it costs about
as much for fewer, and more take memory."""


class SequentialWalk:
    """A walk over the layers of one model, the float network beside the lowered one.

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
            stops.append(judged_values(model))
        store, self._custom_ops, self._engine = samples.store, samples.custom_ops, samples.engine
        self.float_run = SegmentedRun(model, stops, store, "float", self._custom_ops)
        self.sizes: list[int] = []
        chunks = in_chunks(model, samples.replay(keep=survey), self._custom_ops)
        first = list(islice(chunks, 1))
        with deciding(model, self._lowered_model, self._custom_ops) as decide:
            give(self._lowered_model, {name: array for chunk in first for name, array in decide(chunk.feed).items()})
            codes = [(self._lowered[stage[0].name].source,) for stage in self._stages]
            self._quantized_run = SegmentedRun(self._lowered_model, codes, store, "quantized", self._custom_ops)
            for chunk in chain(first, chunks):
                self.sizes.append(chunk.size)
                self.float_run.feed(chunk.feed)
                self._quantized_run.feed({**chunk.feed, **decide(chunk.feed)})

    def layers(self) -> Iterator[tuple[LinearLayer, LayerMoments]]:
        """Yield each layer with its moments; `install` its numbers before going on."""
        for stage in self._stages:
            yield from self._moments(stage)
        self.float_run.close()
        self._quantized_run.close()

    def install(self, layer: LinearLayer, encoding: WeightEncoding, bias: BiasEncoding | FloatBias | None) -> None:
        """Write the layer's final numbers into the lowered network, which goes on with them."""
        self._lowered[layer.name].rewrite(self._lowered_model.graph, encoding, bias)

    def _moments(self, stage: list[LinearLayer]) -> Iterator[tuple[LinearLayer, LayerMoments]]:
        trim()
        weights = {layer.name: layer.layout.to_matrix(initializer_of(self._model, layer.weight)) for layer in stage}
        alike: dict[Unfold, list[LinearLayer]] = {}
        for layer in stage:
            alike.setdefault(layer.unfold, []).append(layer)
        moments_of = {unfold: _Moments(layers, _side_by_side(layers, weights)) for unfold, layers in alike.items()}
        self._take(stage, moments_of)
        for layer in stage:
            yield layer, moments_of[layer.unfold].of(layer)

    def _take(self, stage: list[LinearLayer], moments_of: Mapping[Unfold, _Moments]) -> None:
        """Walk on to a stage, and add up its moments."""
        grid = self._plan.activations.get(stage[0].source)
        values = zip(self.sizes, self.float_run.advance(), self._quantized_run.advance(), strict=True)
        common = _Common(grid, tuple((unfold, moments.weight) for unfold, moments in moments_of.items()))
        with threadpool_limits(1, "blas"):  # one product per core, not every core in one product
            for half, parts in self._engine.map(_measure, common, _together(values, stage)):
                for moments, part in zip(moments_of.values(), parts, strict=True):
                    moments.add(half, part)


_Values = tuple[int, list[NDArray[Any]], list[NDArray[Any]]]
"""Samples of a chunk, what the float network gives a layer there, and what the quantized one gives it."""

_Together = tuple[int, list[_Values]]
"""Half of the set, 0 or 1, and chunks of it."""

_Parts = tuple[LayerStatistics, Pooled]


@dataclass(frozen=True)
class _Common:
    """Grid of a stage's input, unfoldings and the weights they meet: alike for all chunks of the stage."""

    grid: QuantParams | None
    unfolds: tuple[tuple[Unfold, NDArray[np.float32]], ...]


def _measure(common: _Common, part: _Together) -> tuple[int, list[_Parts]]:
    """Compute moments of the rows of some chunks, and of the means of their samples, on whatever machine this runs."""
    half, chunks = part
    rows = [_Rows() for _ in common.unfolds]
    for size, (original,), (codes,) in chunks:
        given, limit = codes if common.grid is None else dequantize(codes, common.grid), MAX_ROWS * size
        for own, (unfold, _) in zip(rows, common.unfolds, strict=True):
            own.add(unfold.rows(given, limit), unfold.rows(original, limit), size)
    return half, [own.moments(weight) for own, (_, weight) in zip(rows, common.unfolds, strict=True)]


class _Rows:
    """Rows of some chunks in both networks, and the means of their samples."""

    def __init__(self) -> None:
        self._rows: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
        self._means: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])

    def add(self, given: NDArray[Any], original: NDArray[Any], size: int) -> None:
        """Add the rows of a chunk, which holds some samples: of the quantized network, and of the float one."""
        for rows, means, own in zip(self._rows, self._means, (given, original), strict=True):
            rows.append(own)
            means.append(_sample_means(own, size))

    def moments(self, weight: NDArray[np.float32]) -> _Parts:
        """Return the moments; the rows are used up, as there are many of them."""
        given, original = (_joined(side) for side in self._rows)
        means = tuple(_joined(side) for side in self._means)
        wide = means[0].shape[-1] >= FEW_INPUTS
        pooled = SampleMeans(*means) if wide else LayerStatistics.of(means[0], weight, means[1], wide=False)
        return LayerStatistics.of(given, weight, original, wide=False), pooled


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Join the rows of several chunks, and let go of the parts."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
    parts.clear()
    return whole


@dataclass
class _Moments:
    """Moments under construction, shared by layers that read the same rows."""

    layers: list[LinearLayer]
    weight: NDArray[np.float32]
    rows: dict[int, MomentSum] = field(default_factory=dict)
    pooled: dict[int, MomentSum | MeansKept] = field(default_factory=dict)

    def add(self, half: int, parts: _Parts) -> None:
        """Add the moments of some chunks to one half of the set."""
        rows, pooled = parts
        self.rows.setdefault(half, MomentSum()).add(rows)
        empty = MomentSum() if isinstance(pooled, LayerStatistics) else MeansKept()
        self.pooled.setdefault(half, empty).add(pooled)  # type: ignore[arg-type]  # all parts are alike

    def of(self, layer: LinearLayer) -> LayerMoments:
        """Return the moments, with the output energy of one of the layers: a copy, but for the last, which has them."""
        sizes = [each.layout.shape[each.layout.out_axis] // each.unfold.groups for each in self.layers]
        start = sum(sizes[: self.layers.index(layer)])
        own = slice(start, start + sizes[self.layers.index(layer)])
        rows = (replace(part.value(), energy=part.value().energy[:, own]) for _, part in sorted(self.rows.items()))
        pooled = (_own(part.value(), own) for _, part in sorted(self.pooled.items()))
        moments = LayerMoments(tuple(rows), tuple(pooled))
        if layer is self.layers[-1]:
            self.rows, self.pooled = {}, {}
            return moments
        return copy.deepcopy(moments)


def _own(pooled: Pooled, own: slice) -> Pooled:
    return replace(pooled, energy=pooled.energy[:, own]) if isinstance(pooled, LayerStatistics) else pooled


def _sample_means(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """Mean row of each sample of a chunk. Shape [groups, samples, in]."""
    return np.stack([own.mean(1) for own in np.array_split(rows, size, 1)], 1)


def _together(values: Iterable[_Values], stage: Sequence[LinearLayer]) -> Iterator[_Together]:
    """Yield chunks of each half of the set in turn, several at once where they are small."""
    width = max(layer.fan_in * layer.unfold.groups for layer in stage)
    waiting: tuple[list[_Values], list[_Values]] = ([], [])
    for index, chunk in enumerate(values):
        chunks = waiting[index % 2]
        chunks.append(chunk)
        rows = sum(size * MAX_ROWS for size, _, _ in chunks) * width
        if sum(codes.size for _, _, (codes,) in chunks) >= TOGETHER or rows >= ROWS_TOGETHER:
            yield index % 2, list(chunks)
            chunks.clear()
    for half, chunks in enumerate(waiting):
        if chunks:
            yield half, chunks


def _stages(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Group layers by the value they read, in the order of each group's first: its predecessors all come before."""
    stages: dict[str, list[LinearLayer]] = {}
    for layer in layers:
        stages.setdefault(layer.source, []).append(layer)
    return list(stages.values())


def _side_by_side(layers: list[LinearLayer], weights: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Join the weights of layers that read the same rows into one, group by group."""
    groups = layers[0].unfold.groups
    parts = [weights[layer.name] for layer in layers]
    width = parts[0].shape[-1]
    return np.concatenate([part.reshape(groups, -1, width) for part in parts], axis=1).reshape(-1, width)
