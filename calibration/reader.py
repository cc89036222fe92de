"""Calibration data in, one sample after the other, checked against the model before anything runs.

Whatever the source, a sample is a feed that the session takes as it is. Nothing is cast, nothing is unpickled, and
never more than one sample of a file is in memory.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ptq.calibration.images import LABELS, SUFFIXES, ImageOptions, image_folder
from ptq.calibration.npz import ArrayFile, open_npy, open_npz
from ptq.calibration.remote import copy_of, local_path
from ptq.calibration.sample import (
    Row,
    Sample,
    as_text,
    check_feed,
    may_be_empty,
    not_finite,
    sample_of_rows,
    split_batch,
    without_padding,
)
from ptq.calibration.tokens import token_rows
from ptq.core.errors import InputError
from ptq.models.source import InputSpec

LABEL_KEYS = ("labels", "label")
FILES = (".npz", ".npy", ".jsonl", ".parquet")
ACCEPTED = (
    "path or URL of an .npz or .npy file, a folder of images, a .jsonl or .parquet file of token ids; arrays, an "
    "iterable of feeds, or an onnxruntime CalibrationDataReader"
)
MOST_RANDOM = 2**28  # numbers of one input
FREE_EXTENT, FREE_SIDE = 16, 224  # what random data puts where the model leaves an extent open

__all__ = ["DataReader", "Sample", "open_data", "random_data"]


class DataReader(Protocol):
    """A stream of samples, checked against the model, that says where it comes from."""

    @property
    def description(self) -> str:
        """Kind and name of the source in one line, without folders."""
        ...

    @property
    def is_random(self) -> bool:
        """Whether the samples are made up."""
        ...

    @property
    def num_samples(self) -> int | None:
        """Most samples that will come, without reading any; None if only reading tells."""
        ...

    @property
    def skipped(self) -> Sequence[str]:
        """Faults of the samples that the last pass left out."""
        ...

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in order."""
        ...


@dataclass(frozen=True)
class _Stream:
    """A reader made of a function that starts the stream."""

    description: str
    start: Callable[[], Iterator[Sample]]
    is_random: bool = False
    skipped: Sequence[str] = ()
    num_samples: int | None = None

    def __iter__(self) -> Iterator[Sample]:
        return self.start()


@runtime_checkable
class _OrtReader(Protocol):
    def get_next(self) -> Any: ...


def open_data(
    source: Any,
    specs: Sequence[InputSpec],
    *,
    limit: int = 512,
    images: ImageOptions | None = None,
    keep_padding: bool = False,
    skip_bad: bool = False,
) -> DataReader:
    """Open calibration data of any supported kind.

    Args:
        source: Path or URL of an .npz (keys = input names, leading axis = samples; a key `labels` holds classes),
            .npy, .jsonl or .parquet file or an image folder; an array for a one-input model; a mapping of arrays; an
            iterable of feeds (mappings, or (mapping, label) pairs); an onnxruntime `CalibrationDataReader`.
        specs: The model's inputs.
        limit: Most samples to yield.
        images: How to read an image folder.
        keep_padding: Give samples in the lengths that they have, as batches and other machines need them.
        skip_bad: Leave out images that cannot be read and samples with NaN or infinity, instead of stopping there.

    Returns:
        A reader; files can be iterated again, one-shot iterables not.

    Raises:
        InputError: The source cannot be used; names file, input and sample, expected against found.
    """
    _require_batches(specs)
    start, description, count = _open(source, list(specs), images)

    skipped: list[str] = []

    def stream() -> Iterator[Sample]:
        count = 0
        skipped.clear()
        for index, given in enumerate(itertools.islice(start(), max(limit, 0))):  # what is beyond is not even read
            sample = replace(given, feed=as_text(given.feed))
            if not sample.fault:
                check_feed(sample.feed, specs, index, description)
            fault = sample.fault or not_finite(sample.feed, index, description)
            if fault and not skip_bad:
                raise InputError(fault)
            if fault:
                skipped.append(fault)
                continue
            yield sample if keep_padding else replace(sample, feed=without_padding(sample.feed, specs))
            count += 1
        if not count:
            fault = f"; {len(skipped)} were skipped, the first: {skipped[0]}" if skipped else ""
            raise InputError(f"{description}: no sample in it; expected at least one{fault}")

    return _Stream(description, stream, skipped=skipped, num_samples=None if count is None else min(count, limit))


def _require_batches(specs: Sequence[InputSpec]) -> None:
    for spec in specs:
        if spec.shape and 0 in spec.shape[:1]:
            raise InputError(f"the model's input {spec.name!r:.80} takes batches of 0 samples; export it again")


def random_data(specs: Sequence[InputSpec], num_samples: int, seed: int) -> DataReader:
    """Make up data: standard normal floats, small integers.

    Args:
        specs: The model's inputs; open extents become 1 (first axis), 224 (sides of an image) or 16.
        num_samples: How many.
        seed: Of the generator.

    Returns:
        A reader that says it is random.

    Raises:
        InputError: No sample is asked for, or an input takes something else than numbers.
    """
    if num_samples < 1:
        raise InputError(f"random data: {num_samples} samples; expected at least 1")
    texts = sorted(spec.name for spec in specs if spec.dtype.hasobject)
    if texts:
        raise InputError(f"random data: {', '.join(texts)} takes text; only numbers can be made up, give a data set")
    extents = _extents(specs)
    for name, sizes in extents.items():
        if not 0 < math.prod(sizes) <= MOST_RANDOM:
            raise InputError(f"random data: input {name!r:.80} has the extents {sizes}; give a data set")

    def stream() -> Iterator[Sample]:
        generator = np.random.default_rng(seed)
        for _ in range(num_samples):
            yield Sample({spec.name: _random(spec, extents[spec.name], generator) for spec in specs})

    return _Stream(f"random data (seed {seed})", stream, is_random=True, num_samples=num_samples)


def _extents(specs: Sequence[InputSpec]) -> dict[str, list[int]]:
    """Choose the extents of every input; open ones with the same name in the model get the same size."""
    named: dict[str, int] = {}

    def size(spec: InputSpec, axis: int, extent: int | str | None) -> int:
        if isinstance(extent, int):
            return extent
        is_side = len(spec.shape or ()) == 4 and spec.dtype.kind == "f" and axis >= 2
        free = 1 if axis == 0 else FREE_SIDE if is_side else FREE_EXTENT
        return free if extent is None else named.setdefault(extent, free)

    return {
        spec.name: [size(spec, axis, extent) for axis, extent in enumerate((1,) if spec.shape is None else spec.shape)]
        for spec in specs
    }


def _random(spec: InputSpec, extents: list[int], generator: np.random.Generator) -> NDArray[Any]:
    if spec.dtype.kind in "iub":
        return generator.integers(0, 2, extents).astype(spec.dtype)
    return np.asarray(generator.standard_normal(extents)).astype(spec.dtype)


def _open(
    source: Any, specs: list[InputSpec], images: ImageOptions | None
) -> tuple[Callable[[], Iterator[Sample]], str, int | None]:
    """Return the function that starts the stream, a description of the source, and how many samples it has."""
    if isinstance(source, str | os.PathLike):
        path = local_path(os.fspath(source))
        return _open_url(os.fspath(source), specs, images) if path is None else _open_path(path, specs, images)
    if isinstance(source, np.ndarray):
        return _arrays({_only(specs, "an array").name: ArrayFile.of(source)}, specs, "array", "array in memory")
    if isinstance(source, Mapping):
        arrays = {str(name): ArrayFile.of(_as_array(value, f"data: {name}")) for name, value in source.items()}
        return _arrays(arrays, specs, "data", "arrays in memory")
    if isinstance(source, _OrtReader):
        return lambda: _feeds(_drain(source), specs), type(source).__name__, None
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        return lambda: _feeds(source, specs), "iterable in memory", None
    raise InputError(f"calibration data of type {type(source).__name__}; expected {ACCEPTED}")


def _drain(reader: _OrtReader) -> Iterator[Any]:
    while (item := reader.get_next()) is not None:
        yield item


def _as_array(value: Any, what: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:  # ragged lists; tensors that numpy cannot see
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{what} cannot become an array ({reason}); expected numbers of one shape") from error


def _open_url(
    url: str, specs: list[InputSpec], images: ImageOptions | None
) -> tuple[Callable[[], Iterator[Sample]], str, int | None]:
    """Open a copy of the data, which is kept as long as the stream can be started."""
    copy = copy_of(url, FILES, SUFFIXES, LABELS)
    try:
        start, description, count = _open_path(copy.path, specs, images, copy.fetch)
    except InputError as error:
        copy.remove()
        raise InputError(str(error).replace(str(copy.path), copy.url)) from error
    weakref.finalize(start, copy.remove)
    return start, description, count


def _open_path(
    path: Path,
    specs: list[InputSpec],
    images: ImageOptions | None,
    fetch: Callable[[Path], None] = lambda _path: None,
) -> tuple[Callable[[], Iterator[Sample]], str, int | None]:
    try:
        found = path.exists()
    except OSError as error:
        raise InputError(f"{str(path)[:200]}: cannot read it: {error.strerror}; check the path") from error
    if not found:
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        spec = _only(specs, "an image folder")
        rows, count = image_folder(path, spec, images or ImageOptions(), fetch)
        return rows, f"image folder {path.name}", count
    if not path.is_file():
        raise InputError(f"{path}: expected a regular file or a folder, found a device or pipe")
    match path.suffix.lower():
        case ".npz":
            return _arrays(open_npz(path), specs, path.name, f"npz file {path.name}")
        case ".npy":
            array = {_only(specs, ".npy").name: open_npy(path)}
            return _arrays(array, specs, path.name, f"npy file {path.name}")
        case ".jsonl" | ".parquet":
            return token_rows(path, specs), f"{path.suffix[1:]} file {path.name}", None
    raise InputError(f"{path}: unknown kind of data {path.suffix!r}; expected {ACCEPTED}")


def _only(specs: list[InputSpec], what: str) -> InputSpec:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"{what} feeds one input, the model has {len(specs)} ({names}); use an .npz with these keys")
    return specs[0]


def _arrays(
    arrays: Mapping[str, ArrayFile], specs: list[InputSpec], where: str, description: str
) -> tuple[Callable[[], Iterator[Sample]], str, int]:
    """Check arrays with a leading sample axis now, and return the stream that reads them later."""
    wanted = {spec.name for spec in specs}
    key = next((key for key in LABEL_KEYS if key in arrays and key not in wanted), None)
    inputs = {name: array for name, array in arrays.items() if name != key}
    _require_names(inputs, specs, where)
    if not specs:
        raise InputError(f"{where}: the model takes no inputs, so arrays say of no sample; use --random-data")
    rows = {spec.name: Row(spec, inputs[spec.name].dtype, inputs[spec.name].shape, where) for spec in specs}
    labels = None if key is None else arrays[key]
    if labels is not None and (len(labels.shape) != 1 or labels.dtype.kind not in "iu"):
        raise InputError(
            f"{where}: {key} is {labels.dtype} {list(labels.shape)}; expected one whole class number per sample"
        )
    _require_counts(rows, labels, where)
    num_feeds = min(row.num_rows // row.group for row in rows.values())

    def stream() -> Iterator[Sample]:
        streams = {name: inputs[name].rows() for name in rows}
        # Where the model's fixed batch puts several samples into a feed, no single class belongs to it.
        classes = None if labels is None or labels.shape[0] != num_feeds else labels.rows()
        for _ in range(num_feeds):
            feed = {name: sample_of_rows(rows[name], streams[name]) for name in rows}
            yield Sample(feed, None if classes is None else int(next(classes)))

    return stream, description, num_feeds


def _require_names(inputs: Mapping[str, ArrayFile], specs: list[InputSpec], where: str) -> None:
    wanted, found = sorted(spec.name for spec in specs), sorted(inputs)
    if wanted != found:
        raise InputError(
            f"{where}: has arrays {', '.join(found) or 'none'}; the model's inputs are {', '.join(wanted) or 'none'}"
        )


def _require_counts(rows: Mapping[str, Row], labels: ArrayFile | None, where: str) -> None:
    counts = {name: row.num_rows for name, row in rows.items()}
    differ = len({row.num_rows // row.group for row in rows.values()}) > 1
    if differ or (labels is not None and labels.shape[0] not in counts.values()):
        shown = counts if labels is None else counts | {"labels": labels.shape[0]}
        listed = ", ".join(f"{name} {count}" for name, count in sorted(shown.items()))
        raise InputError(f"{where}: different numbers of samples: {listed}; expected the same in every array")


def _feeds(source: Iterable[Any], specs: list[InputSpec]) -> Iterator[Sample]:
    """Yield feeds as they come, batches with a free batch axis taken apart."""
    for index, item in enumerate(source):
        feed, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(feed, Mapping):
            feed = {_only(specs, "a bare array").name: feed}
        where = f"calibration data: feed {index}"
        arrays = {str(name): _as_array(value, f"{where}: {name}") for name, value in feed.items()}
        if not _has_ranks(arrays, specs):
            yield Sample(arrays)  # refused as a sample, with the shape it came in
            continue
        samples = [sample.feed for sample in split_batch(arrays, None, specs)]
        for each, number in zip(samples, _classes(label, arrays, len(samples), where), strict=True):
            yield Sample(each, number)


def _has_ranks(arrays: Mapping[str, NDArray[Any]], specs: list[InputSpec]) -> bool:
    return {spec.name for spec in specs} == set(arrays) and all(
        (arrays[spec.name].size or (len(specs) > 1 and may_be_empty(arrays[spec.name].shape, spec)))
        and (spec.shape is None or arrays[spec.name].ndim == len(spec.shape))
        for spec in specs
    )


def _classes(label: Any, arrays: Mapping[str, NDArray[Any]], num_samples: int, where: str) -> Sequence[int | None]:
    """Return the class of each sample of a feed; None for a feed that is a batch, as no single class belongs to it."""
    if label is None:
        return [None] * num_samples
    values = _as_array(label, f"{where}: label").reshape(-1)
    if values.dtype.kind not in "iu":
        raise InputError(f"{where}: label is {label!r:.80}; expected a whole class number per sample")
    if len(values) == num_samples:
        return [int(value) for value in values]
    if num_samples == 1 and {len(array) for array in arrays.values() if array.ndim} == {len(values)}:
        return [None]
    raise InputError(f"{where}: {len(values)} labels for {num_samples} samples; expected a class number per sample")
