"""Arrays that wait between two steps, in memory up to a bound and on disk beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ptq.core.errors import InputError
from ptq.files.scratch import scratch_folder


class ArrayStore:
    """Arrays by key. Use as a context manager: the files it spills to go when it closes.

    Args:
        budget: Bytes held in memory; what comes later goes to temporary files.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._arrays: dict[Hashable, NDArray[Any]] = {}
        self._files: dict[Hashable, Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def put(self, key: Hashable, array: NDArray[Any]) -> None:
        """Keep an array under a key; on disk if memory is used up."""
        if self._used + array.nbytes <= self._budget:
            self._arrays[key] = array
            self._used += array.nbytes
            return
        self._folder = self._folder or scratch_folder()
        self._count += 1
        self._files[key] = Path(self._folder.name) / f"{self._count}.npy"
        try:
            np.save(self._files[key], array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)
        except OSError as error:
            raise InputError(f"cannot write values between layers to {self._folder.name}: {error}") from error

    def get(self, key: Hashable) -> NDArray[Any]:
        """Return the array that was put under the key."""
        if key in self._arrays:
            return self._arrays[key]
        array: NDArray[Any] = np.load(self._files[key], allow_pickle=False)
        return array.astype(object) if array.dtype.kind == "U" else array  # text

    def drop(self, key: Hashable) -> None:
        """Forget the array under the key."""
        if key in self._arrays:
            self._used -= self._arrays.pop(key).nbytes
        else:
            self._files.pop(key).unlink()

    def __contains__(self, key: Hashable) -> bool:
        """Whether an array waits under the key."""
        return key in self._arrays or key in self._files

    @property
    def spilled(self) -> int:
        """Number of arrays that went to disk so far."""
        return self._count

    def __enter__(self) -> Self:
        """Return the store, which opens nothing."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove arrays and files."""
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()
