"""Links between the axes of values: positions that stand or fall together, and those that a layer sums over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Axis(NamedTuple):
    """One axis of a value, counted from the front.

    Attributes:
        value: An activation, or a constant.
        axis: Which of its axes.
    """

    value: ir.Value
    axis: int


@dataclass(frozen=True)
class Tie:
    """Positions of two axes that stand or fall together: `at[0][i]` of the first with `at[1][i]` of the second."""

    first: Axis
    second: Axis
    at: tuple[Indices, Indices]


@dataclass(frozen=True)
class Read:
    """An axis that a layer sums over: what is known of a position there can move into weights and bias.

    Attributes:
        node: The layer.
        source: The axis of its input.
        weight: The axis of its weight, with the same positions.
        takes_constants: Whether a constant that is not 0 becomes one bias: not where zeros are padded around it.
        takes_multiples: Whether nothing else tells positions apart that are multiples of one another.
    """

    node: ir.Node
    source: Axis
    weight: Axis
    takes_constants: bool = True
    takes_multiples: bool = True


Link = Tie | Read
Kept = Callable[[Axis], Mask]
"""Which positions of an axis stay."""


def rank(value: ir.Value | None) -> int | None:
    """Return the number of axes of a value; None if nobody knows."""
    return None if value is None or value.shape is None else len(value.shape)


def extent(axis: Axis) -> int | None:
    """Return the number of positions of an axis; None if it is not fixed, or there is no such axis."""
    shape = axis.value.shape
    if shape is None or not 0 <= axis.axis < len(shape):
        return None
    size = shape[axis.axis]
    return size if isinstance(size, int) else None


def one_to_one(first: Axis, second: Axis) -> Iterator[Tie]:
    """Tie two axes position by position; nothing where their extents are unknown, differ, or are 1."""
    size = extent(first)
    if size is not None and size > 1 and size == extent(second):
        yield Tie(first, second, (np.arange(size), np.arange(size)))


def by_place(first: Axis, merged: Axis, inner: int) -> Iterator[Tie]:
    """Tie each position of one axis to its places along an axis that it was merged into, `inner` in a row."""
    size, total = extent(first), extent(merged)
    if size is not None and total is not None and size > 1 and inner > 0 and total % (size * inner) == 0:
        yield Tie(first, merged, (np.arange(total) // inner % size, np.arange(total)))


def alike(first: ir.Value, second: ir.Value, skipped: frozenset[int] = frozenset()) -> Iterator[Tie]:
    """Tie all axes of two values of the same rank, but the skipped ones."""
    if rank(first) == rank(second):
        for axis in set(range(rank(first) or 0)) - skipped:
            yield from one_to_one(Axis(first, axis), Axis(second, axis))


def positive(axis: int, value: ir.Value) -> int:
    """Count an axis from the front; -1 where the rank is not known."""
    known = rank(value)
    return -1 if known is None else axis % max(known, 1)
