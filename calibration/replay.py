"""The calibration set kept for further passes, and its samples stacked where a model takes several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq.calibration.executor import LOCAL, Executor
from ptq.calibration.store import ArrayStore
from ptq.core.arrays import Feed
from ptq.models.sessions import run, session_of

CHUNK_BYTES = 4 * 2**20
"""Size of the model inputs that are run at once: enough to make one call worth its cost."""

VALUE_BYTES = 16 * 2**20
"""Size of the largest value between two layers in what is run at once: several such chunks are under way."""

MAX_CHUNK = 16

SAME = 1e-3  # of the largest output: how far a batch may differ from its samples one by one


@dataclass(frozen=True)
class Chunk:
    """Samples that are run at once, stacked along the first axis.

    Attributes:
        feed: Model inputs.
        size: Number of samples.
    """

    feed: Feed
    size: int


class SampleReplay:
    """The calibration set, kept so that it can be run over again.

    Args:
        store: Store in which the samples wait, and later what the networks make of them.
        custom_ops: Libraries the model needs.
        engine: Executor that computes moments.
    """

    def __init__(self, store: ArrayStore, custom_ops: Sequence[str | Path] = (), engine: Executor = LOCAL) -> None:
        self.store, self.custom_ops, self.engine = store, tuple(custom_ops), engine
        self._names: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        """Return the number of samples that are kept."""
        return len(self._names)

    def record(self, feeds: Iterable[Feed]) -> Iterator[Feed]:
        """Pass samples through, and keep a copy of each."""
        for feed in feeds:
            for name, array in feed.items():
                self.store.put((len(self._names), name), array)
            self._names.append(tuple(feed))
            yield feed

    def extend(self, feeds: Iterable[Feed]) -> int:
        """Keep further samples, and return how many there were."""
        return sum(1 for _ in self.record(feeds))

    def replay(self, *, keep: bool = False) -> Iterator[Feed]:
        """Yield the samples again; unless `keep` is set, each is forgotten as it is given."""
        for index, names in enumerate(tuple(self._names)):
            yield {name: self.store.get((index, name)) for name in names}
            for name in () if keep else names:
                self.store.drop((index, name))
        self._names = self._names if keep else []


def in_chunks(model: ir.Model, feeds: Iterable[Feed], custom_ops: Sequence[str | Path]) -> Iterator[Chunk]:
    """Stack samples of equal shapes into chunks."""
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
    """Find how many samples the model takes at once; 1 unless its first axis is free and a batch changes nothing."""
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
        if one.dtype.kind in "OSU":  # text
            continue
        twice = np.concatenate([one, one]) if one.ndim else one
        if two.shape != twice.shape or not np.allclose(two, twice, atol=SAME * float(np.abs(one).max(initial=1e-30))):
            return 1
    num_bytes = sum(array.nbytes for array in first.values())
    most = min(CHUNK_BYTES // max(num_bytes, 1), VALUE_BYTES // max(_largest(model), 1))
    return int(min(max(most, 1), MAX_CHUNK))


def _largest(model: ir.Model) -> int:
    """Return the bytes of the largest value that a node makes of one sample, as far as shapes are known."""
    made = (value for node in model.graph for value in node.outputs)
    return max((_num_bytes(value) for value in made if value.shape is not None), default=0)


def _num_bytes(value: ir.Value) -> int:
    extents = [extent for extent in value.shape or () if isinstance(extent, int)]
    return 4 * int(np.prod(extents, dtype=np.int64))


def _shapes(feed: Feed) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, str(array.dtype)) for name, array in feed.items()}


def _stack(feeds: list[Feed]) -> Chunk:
    if len(feeds) == 1:
        return Chunk(feeds[0], 1)
    return Chunk({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}, len(feeds))
