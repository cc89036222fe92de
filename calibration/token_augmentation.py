"""Copies of texts with other words in them, for second moments.

A few hundred texts use a few hundred words of a vocabulary of tens of thousands. Moments of what a network makes of
them say nothing of directions that the other words need, and weights fitted to those moments err there. Texts
with half of the words replaced by any rows of the embedding table show these directions, half of the context still
real. Ranges of activations come from the texts alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.replay import SampleReplay
from ptq.core.arrays import Feed
from ptq.passes.linear import constant

FEWEST_ROWS = 1000
"""Rows of a table that make it a vocabulary; kinds of tokens have two, and few letters are missed by many texts."""

SHARE = 0.5
"""Share of the tokens of a copy that are replaced."""

COPIES = 1
"""Number of copies of each sample."""

COMMON = 0.9
"""Share of the samples from which on a token stays: those that begin and end a text, and padding."""

MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def augment(model: ir.Model, samples: SampleReplay, seed: int) -> tuple[str, ...]:
    """Add copies of the samples with some words replaced to those that wait for methods that read inputs.

    Args:
        model: Prepared float model.
        samples: The samples, kept; extended.
        seed: Of what is drawn.

    Returns:
        A note for the report, if there was something to add.
    """
    vocabulary = vocabularies(model)
    if not vocabulary:
        return ()
    count = samples.extend(with_other_tokens(lambda: samples.replay(keep=True), vocabulary, seed))
    return (f"weights also fitted to {count} samples with other words in them",) if count else ()


def vocabularies(model: ir.Model) -> dict[str, int]:
    """Map inputs that pick rows of a large constant table to its number of rows, the least where there are several."""
    sizes: dict[str, int] = {}
    for node in model.graph:
        table = constant(node.inputs[0]) if node.op_type == "Gather" and not node.domain else None
        if table is None or table.ndim != 2 or len(table) < FEWEST_ROWS or node.attributes.get_int("axis", 0) != 0:
            continue
        picked = _source(node.inputs[1])
        if picked is not None and picked.is_graph_input() and picked.dtype in (ir.DataType.INT64, ir.DataType.INT32):
            name = str(picked.name)
            sizes[name] = min(sizes.get(name, len(table)), len(table))
    return sizes


def with_other_tokens(
    samples: Callable[[], Iterable[Feed]], rows: Mapping[str, int], seed: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Copy every sample with half of its tokens drawn anew, evenly from the vocabulary.

    Args:
        samples: Starts the samples from the first one.
        rows: Size of the vocabulary of each input of tokens, see `vocabularies`.
        seed: Of what is drawn.

    Yields:
        Feeds of the shapes that came in; none if there are no words, or all samples have the same.
    """
    kept = {name: _common(feed[name] for feed in samples()) for name in rows}
    tokens = {name: common for name, common in kept.items() if not _counts_up(feed[name] for feed in samples())}
    random = np.random.default_rng(seed)
    for feed in itertools.chain.from_iterable(samples() for _ in range(COPIES)):
        copy = {name: _redrawn(feed[name], common, rows[name], random) for name, common in tokens.items()}
        if any((copy[name] != feed[name]).any() for name in copy):
            yield {**feed, **copy}


def _redrawn(ids: NDArray[Any], common: NDArray[Any], num_rows: int, random: np.random.Generator) -> NDArray[Any]:
    drawn = random.integers(0, num_rows, ids.shape, ids.dtype)
    return np.where((random.random(ids.shape) < SHARE) & ~np.isin(ids, common), drawn, ids)


def _common(samples: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Return the tokens that at least `COMMON` of the samples contain."""
    present = [np.unique(ids) for ids in samples]
    ids, counts = np.unique(np.concatenate(present), return_counts=True)
    return np.asarray(ids[counts >= COMMON * len(present)])


def _counts_up(samples: Iterable[NDArray[Any]]) -> bool:
    """Whether the numbers are positions: each is one more than the last."""
    return all(bool((np.diff(ids, axis=-1) == 1).all()) for ids in samples if ids.ndim)


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return the value that another comes from through nodes that leave its numbers as they are."""
    while value is not None and (node := value.producer()) is not None and node.op_type in MOVES and not node.domain:
        value = node.inputs[0]
    return value
