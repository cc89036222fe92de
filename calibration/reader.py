"""Calibration data in, one sample after the other, checked against the model before anything runs.

Whatever the source, a sample is a feed that the session takes as it is. Nothing is cast, nothing is unpickled, and
never more than one sample of a file is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ptq.calibration.images import ImageOptions, image_folder
from ptq.calibration.npz import ArrayFile, open_npy, open_npz
from ptq.calibration.sample import Row, Sample, check_feed, sample_of_rows, split_batch
from ptq.calibration.tokens import token_rows
from ptq.core.errors import InputError
from ptq.modelfile import InputSpec

LABEL_KEYS = ("labels", "label")
ACCEPTED = (
    "an .npz or .npy file, a folder of images, a .jsonl or .parquet file of token ids, arrays, an iterable of feeds, "
    "or an onnxruntime CalibrationDataReader"
)
FREE_EXTENT, FREE_SIDE = 16, 224  # what random data puts where the model leaves an extent open

__all__ = ["DataReader", "Sample", "open_data", "random_data"]


class DataReader(Protocol):
    """A stream of samples."""

    @property
    def description(self) -> str:
        """Where the data comes from, one line without folders."""
        ...

    @property
    def is_random(self) -> bool:
        """Whether it was made up."""
        ...

    def __iter__(self) -> Iterator[Sample]:
        """Feeds, in order."""
        ...


@dataclass(frozen=True)
class _Stream:
    """A reader made of a function that starts the stream."""

    description: str
    start: Callable[[], Iterator[Sample]]
    is_random: bool = False

    def __iter__(self) -> Iterator[Sample]:
        return self.start()


@runtime_checkable
class _OrtReader(Protocol):
    def get_next(self) -> Any: ...


def open_data(
    source: Any, specs: Sequence[InputSpec], *, limit: int = 512, images: ImageOptions | None = None
) -> DataReader:
    """Open calibration data of any supported kind.

    Args:
        source: Path of an .npz (keys = input names, leading axis = samples; a key `labels` holds classes), .npy,
            .jsonl or .parquet file or an image folder; an array for a one-input model; a mapping of arrays; an
            iterable of feeds (mappings, or (mapping, label) pairs); an onnxruntime `CalibrationDataReader`.
        specs: The model's inputs.
        limit: Most samples to yield.
        images: How to read an image folder.

    Returns:
        A reader; files can be iterated again, one-shot iterables not.

    Raises:
        InputError: The source cannot be used; names file, input and sample, expected against found.
    """
    start, description = _open(source, list(specs), images)

    def stream() -> Iterator[Sample]:
        count = 0
        for sample in start():
            if count == limit:
                return
            check_feed(sample.feed, specs, count, description)
            yield sample
            count += 1
        if not count:
            raise InputError(f"{description}: no sample in it; expected at least one")

    return _Stream(description, stream)


def random_data(specs: Sequence[InputSpec], num_samples: int, seed: int) -> DataReader:
    """Made-up data: standard normal floats, small integers.

    Args:
        specs: The model's inputs; open extents become 1 (first axis), 224 (sides of an image) or 16.
        num_samples: How many.
        seed: Of the generator.

    Returns:
        A reader that says it is random.
    """

    def stream() -> Iterator[Sample]:
        generator = np.random.default_rng(seed)
        for _ in range(num_samples):
            yield Sample({spec.name: _random(spec, generator) for spec in specs})

    return _Stream(f"random data (seed {seed})", stream, is_random=True)


def _random(spec: InputSpec, generator: np.random.Generator) -> NDArray[Any]:
    shape = spec.shape if spec.shape is not None else (1,)
    is_image = len(shape) == 4 and spec.dtype.kind == "f"
    extents = [
        n if isinstance(n, int) else 1 if axis == 0 else FREE_SIDE if is_image and axis >= 2 else FREE_EXTENT
        for axis, n in enumerate(shape)
    ]
    if spec.dtype.kind in "iub":
        return generator.integers(0, 2, extents).astype(spec.dtype)
    return np.asarray(generator.standard_normal(extents)).astype(spec.dtype)


def _open(
    source: Any, specs: list[InputSpec], images: ImageOptions | None
) -> tuple[Callable[[], Iterator[Sample]], str]:
    if isinstance(source, str | Path):
        return _open_path(Path(source), specs, images)
    if isinstance(source, np.ndarray):
        return _arrays({_only(specs, "an array").name: ArrayFile.of(source)}, specs, "array"), "array in memory"
    if isinstance(source, Mapping):
        return _arrays({k: ArrayFile.of(np.asarray(v)) for k, v in source.items()}, specs, "data"), "arrays in memory"
    if isinstance(source, _OrtReader):
        return lambda: _feeds(iter(source.get_next, None), specs), type(source).__name__
    if isinstance(source, Iterable):
        return lambda: _feeds(source, specs), "iterable in memory"
    raise InputError(f"calibration data of type {type(source).__name__}; expected {ACCEPTED}")


def _open_path(
    path: Path, specs: list[InputSpec], images: ImageOptions | None
) -> tuple[Callable[[], Iterator[Sample]], str]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        spec = _only(specs, "an image folder")
        rows = image_folder(path, spec, images or ImageOptions())
        return rows, f"image folder {path.name}"
    if not path.is_file():
        raise InputError(f"{path}: expected a regular file or a folder, found a device or pipe")
    match path.suffix.lower():
        case ".npz":
            return _arrays(open_npz(path), specs, path.name), f"npz file {path.name}"
        case ".npy":
            array = {_only(specs, ".npy").name: open_npy(path)}
            return _arrays(array, specs, path.name), f"npy file {path.name}"
        case ".jsonl" | ".parquet":
            return token_rows(path, specs), f"{path.suffix[1:]} file {path.name}"
    raise InputError(f"{path}: unknown kind of data {path.suffix!r}; expected {ACCEPTED}")


def _only(specs: list[InputSpec], what: str) -> InputSpec:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"{what} feeds one input, the model has {len(specs)} ({names}); use an .npz with these keys")
    return specs[0]


def _arrays(arrays: Mapping[str, ArrayFile], specs: list[InputSpec], where: str) -> Callable[[], Iterator[Sample]]:
    """Arrays with a leading sample axis; checked now, read later."""
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays and key not in {s.name for s in specs}), None)
    inputs = {name: array for name, array in arrays.items() if array is not labels}
    _require_names(inputs, specs, where)
    rows = {spec.name: Row(spec, inputs[spec.name].dtype, inputs[spec.name].shape, where) for spec in specs}
    _require_counts(rows, None if labels is None else labels.shape, where)

    def stream() -> Iterator[Sample]:
        streams = {name: inputs[name].rows() for name in rows}
        classes = None if labels is None else labels.rows()
        size = max(row.group for row in rows.values())
        count = min((row.num_rows // row.group) for row in rows.values())
        for _ in range(count):
            feed = {name: sample_of_rows(rows[name], streams[name]) for name in rows}
            label = None
            if classes is not None:
                drawn = [int(next(classes)) for _ in range(size)]
                label = drawn[0] if size == 1 else None
            yield Sample(feed, label)

    return stream


def _require_names(inputs: Mapping[str, ArrayFile], specs: list[InputSpec], where: str) -> None:
    wanted, found = sorted(spec.name for spec in specs), sorted(inputs)
    if wanted != found:
        raise InputError(
            f"{where}: has arrays {', '.join(found) or 'none'}; the model's inputs are {', '.join(wanted)}"
        )


def _require_counts(rows: Mapping[str, Row], labels: tuple[int, ...] | None, where: str) -> None:
    counts = {name: row.num_rows for name, row in rows.items()} | ({} if labels is None else {"labels": labels[0]})
    if len({row.num_rows // row.group for row in rows.values()}) > 1 or (
        labels is not None and labels[0] not in {row.num_rows for row in rows.values()}
    ):
        listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        raise InputError(f"{where}: different numbers of samples: {listed}; expected the same in every array")
    if labels is not None and len(labels) != 1:
        raise InputError(f"{where}: labels have shape {labels}; expected one class number per sample")


def _feeds(source: Iterable[Any], specs: list[InputSpec]) -> Iterator[Sample]:
    """Feeds as they come, batches with a free batch axis taken apart."""
    for index, item in enumerate(source):
        feed, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(feed, Mapping):
            feed = {_only(specs, "a bare array").name: feed}
        arrays = {str(name): np.asarray(value) for name, value in feed.items()}
        check_feed(arrays, specs, index, "calibration data")
        yield from split_batch(arrays, label, specs)
