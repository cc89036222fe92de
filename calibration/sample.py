"""One sample, and what it takes to fit a model's inputs. Pure checks and slices; no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.errors import InputError
from ptq.models.source import InputSpec


@dataclass(frozen=True)
class Sample:
    """The input of one run, with its class if that is known.

    Attributes:
        feed: Input name -> array, as the session takes it.
        label: Class, if known.
        fault: Why there is nothing to feed, if so.
    """

    feed: Mapping[str, NDArray[Any]]
    label: int | None = None
    fault: str = ""


def digest_with(digest: Any, feed: Mapping[str, NDArray[Any]]) -> None:
    """Update a hash with the names, types, shapes and values of a sample."""
    for name in sorted(feed):
        array = feed[name]
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())


def as_text(feed: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Return a sample with its texts as onnxruntime takes them: as Python strings, not as numpy's of one length."""
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in feed.items()}


def repeated(feed: Mapping[str, NDArray[Any]], size: int) -> Mapping[str, NDArray[Any]]:
    """Repeat one sample `size` times as a batch."""
    return {name: np.concatenate([array] * size) if array.ndim and size > 1 else array for name, array in feed.items()}


@dataclass(frozen=True)
class Row:
    """Rules by which rows of an array with a leading sample axis become feeds of one input.

    Attributes:
        spec: The input.
        dtype: Of the array.
        shape: Of the array, samples first.
        where: File, for messages.
    """

    spec: InputSpec
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    where: str

    def __post_init__(self) -> None:
        name, wanted = self.spec.name, self.spec.shape
        if not self.shape:
            raise InputError(f"{self.where}: {name} is a single number; expected a leading axis of samples")
        _require_dtype(self.spec, self.dtype, self.where)
        if wanted is not None and len(self.shape) not in (len(wanted), len(wanted) + 1):
            raise InputError(f"{self.where}: {name} has shape {self.shape}; the model wants {self.spec}, samples first")
        extents = self.shape[1:]
        fixed = () if wanted is None else wanted if self.adds_axis else wanted[1:]
        if any(isinstance(n, int) and n != m for n, m in zip(fixed, extents, strict=False)):
            raise InputError(f"{self.where}: each sample of {name} is {list(extents)}; the model wants {self.spec}")
        shape = extents if self.adds_axis else self.shape
        if 0 in self.shape and not (self.shape[0] and may_be_empty(shape, self.spec)):
            raise InputError(
                f"{self.where}: {name} has shape {self.shape}, which is empty; expected at least one value"
            )
        if self.shape[0] < self.group:
            raise InputError(f"{self.where}: {name} has {self.shape[0]} samples; the model's batch is {self.group}")

    @property
    def adds_axis(self) -> bool:
        """Whether the data has an axis more than the input: the model has no batch axis, or each row is a batch."""
        return self.spec.shape is not None and len(self.shape) == len(self.spec.shape) + 1

    @property
    def group(self) -> int:
        """Number of rows that make one feed: the model's fixed batch, else 1."""
        first = self.spec.shape[0] if self.spec.shape else None
        return first if isinstance(first, int) and not self.adds_axis else 1

    @property
    def num_rows(self) -> int:
        """Number of rows in the array."""
        return self.shape[0]


def sample_of_rows(row: Row, rows: Iterator[NDArray[Any]]) -> NDArray[Any]:
    """Take the rows of one feed from a stream."""
    if row.adds_axis:
        return next(rows)
    return np.stack([next(rows) for _ in range(row.group)])


def check_feed(feed: Mapping[str, NDArray[Any]], specs: Sequence[InputSpec], index: int, where: str) -> None:
    """Refuse a feed that does not fit the model.

    Raises:
        InputError: An input is missing or extra, has another type, rank or extent, or is empty.
    """
    wanted, found = {spec.name for spec in specs}, set(feed)
    if wanted != found:
        listed = ", ".join(sorted(found)) or "nothing"
        raise InputError(f"{where}: sample {index} feeds {listed}; the model's inputs are {', '.join(sorted(wanted))}")
    for spec in specs:
        array = feed[spec.name]
        _require_dtype(spec, array.dtype, f"{where}: sample {index}")
        if spec.shape is not None and not _fits(array.shape, spec.shape):
            raise InputError(f"{where}: {spec.name} is {list(array.shape)} in sample {index}; the model wants {spec}")
        if not array.size and not (len(feed) > 1 and may_be_empty(array.shape, spec)):
            raise InputError(f"{where}: {spec.name} is empty in sample {index}; expected at least one value")


def not_finite(feed: Mapping[str, NDArray[Any]], index: int, where: str) -> str:
    """Describe NaN or infinity in a feed that fits the model; return an empty text if there is none."""
    for name, array in feed.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{where}: {name} holds NaN or infinity in sample {index}; check its preprocessing"
    return ""


def may_be_empty(shape: tuple[int, ...], spec: InputSpec) -> bool:
    """Whether a feed of this shape may hold no values, like a language model's cache before its first token.

    Args:
        shape: Of one feed; its first extent is the batch.
        spec: The input, whose empty axes are free.
    """
    wanted = spec.shape
    if wanted is None or len(wanted) < 3 or len(wanted) != len(shape) or not shape[0]:
        return False
    return all(extent or not isinstance(free, int) for extent, free in zip(shape, wanted, strict=True))


def _require_dtype(spec: InputSpec, dtype: np.dtype[Any], where: str) -> None:
    if spec.dtype.hasobject:
        if dtype.kind not in "UO":
            raise InputError(f"{where}: {spec.name} is {dtype}; the model wants text, give an array of str")
    elif dtype != spec.dtype:
        hint = f"convert it with .astype('{spec.dtype}')"
        raise InputError(f"{where}: {spec.name} is {dtype}; the model wants {spec.dtype}, {hint}")


def _fits(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(n, int) or n == m for n, m in zip(wanted, shape, strict=True)
    )


def split_batch(feed: Mapping[str, NDArray[Any]], label: Any, specs: Sequence[InputSpec]) -> Iterator[Sample]:
    """Take a batch apart, so that any batching of the same samples is the same stream.

    Only where the model says that the first axis is free and the same in all inputs.
    """
    first = {spec.shape[0] if spec.shape else 0 for spec in specs}
    extents = {array.shape[0] if array.ndim else 0 for array in feed.values()}
    free = len(first) == 1 and not isinstance(next(iter(first)), int)
    if not free or len(extents) != 1 or extents == {1}:
        yield Sample(feed, _label(label, 0))
        return
    for i in range(extents.pop()):
        yield Sample({name: array[i : i + 1] for name, array in feed.items()}, _label(label, i))


def _label(label: Any, index: int) -> int | None:
    if label is None:
        return None
    values = np.asarray(label).reshape(-1)
    return int(values[index]) if index < len(values) else None


def without_padding(feed: Mapping[str, NDArray[Any]], specs: Sequence[InputSpec]) -> Mapping[str, NDArray[Any]]:
    """Cut the padding behind a sentence off, where the model says by a mask what it is.

    Padding positions hold values that no result depends on; they would widen ranges and water down every statistic.

    Args:
        feed: One sample.
        specs: The model's inputs; those cut have a free second axis.

    Returns:
        The feed, its inputs of [batch, length] shorter; the feed itself where no input is a mask of 0 and 1 of their
        length that ends in zeros.

    Example:
        >>> spec = [InputSpec(name, np.dtype("int64"), (None, None)) for name in ("ids", "attention_mask")]
        >>> feed = {"ids": np.array([[5, 6, 0]]), "attention_mask": np.array([[1, 1, 0]])}
        >>> without_padding(feed, spec)["ids"]
        array([[5, 6]])
    """
    flat = [spec for spec in specs if spec.shape is not None and len(spec.shape) == 2]
    masks = [feed[spec.name] for spec in flat if "mask" in spec.name.lower()]
    lengths = {feed[spec.name].shape[1] for spec in flat}
    free = all(spec.shape is not None and not isinstance(spec.shape[1], int) for spec in flat)
    if len(masks) != 1 or len(lengths) != 1 or not free or len(flat) != len(specs):
        return feed
    columns = np.flatnonzero(np.max(masks[0], axis=0, initial=0))
    ends = int(columns[-1]) + 1 if len(columns) else 0
    if not ends or ends == masks[0].shape[1] or not np.isin(masks[0], (0, 1)).all():
        return feed
    return {name: array[:, :ends] for name, array in feed.items()}
