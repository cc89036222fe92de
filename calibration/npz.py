"""Arrays in .npy and .npz files, read row by row. Never unpickles, never allocates what a header merely claims."""

from __future__ import annotations

import functools
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ptq.core.errors import InputError

MAX_MEMBERS = 1000
BOMB_BYTES, BOMB_RATIO = 2**25, 200  # of one sample, and how far real data is hardly ever compressed
MAX_HEADER = 10_000  # bytes; numpy writes about 100
WHOLE_LIMIT = 2**30  # bytes of a column-major array, which cannot be read by rows


@dataclass(frozen=True)
class ArrayFile:
    """An array that is read one row at a time.

    Attributes:
        dtype: Element type in native byte order.
        shape: Rows first.
        rows: Starts a stream over the rows.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: Callable[[], Iterator[NDArray[Any]]]

    @staticmethod
    def of(array: NDArray[Any]) -> ArrayFile:
        """An array in memory, of numbers or of text."""
        if array.dtype.hasobject and all(isinstance(each, str) for each in array.flat):
            array = array.astype(str)
        if array.dtype.hasobject:
            raise InputError("array of Python objects; expected plain numbers, or text")
        return ArrayFile(array.dtype, array.shape, lambda: iter(array))


def open_npy(path: Path) -> ArrayFile:
    """Open a .npy file.

    Raises:
        InputError: It is broken, holds pickled objects, or its header does not match its size.
    """
    return _describe(lambda: path.open("rb"), path.stat().st_size, path.name)


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """Open a .npz file.

    Args:
        path: The file; nothing is extracted to disk.

    Returns:
        Array name -> array, in the file's order.

    Raises:
        InputError: It is no zip file, or an array in it is broken.
    """
    with _named_errors(path.name, "is not a readable npz file"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{path.name}: {len(members)} arrays in it; expected one per model input, and labels")
    names = [member.filename.removesuffix(".npy") for member in members]
    if len(set(names)) != len(names):
        raise InputError(f"{path.name}: an array name occurs twice in it; save it again with numpy.savez")
    arrays = {}
    for name, member in zip(names, members, strict=True):
        where = f"{path.name}: array {name}"
        if member.flag_bits & 1:
            raise InputError(f"{where} is encrypted; expected a file written by numpy.savez")
        arrays[name] = _describe(functools.partial(_Member, path, member), member.file_size, where)
        row_bytes = arrays[name].dtype.itemsize * math.prod(arrays[name].shape[1:])
        if row_bytes > BOMB_BYTES and member.file_size > BOMB_RATIO * member.compress_size:
            raise InputError(
                f"{where} inflates {member.file_size // max(member.compress_size, 1)}-fold to samples of "
                f"{row_bytes} bytes; if they are meant, save them with numpy.savez, uncompressed"
            )
    return arrays


class _Member:
    """A zip member that closes its archive with itself."""

    def __init__(self, path: Path, member: zipfile.ZipInfo) -> None:
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open(member)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()


def _describe(start: Callable[[], Any], size: int, where: str) -> ArrayFile:
    """Read a header and check it against the bytes that are there."""
    with _named_errors(where, "is not a readable array"), start() as file:
        shape, fortran, dtype, header = _read_header(file)
    if dtype.hasobject:
        raise InputError(f"{where} holds pickled Python objects, which are never loaded; save plain arrays")
    expected = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or expected != size - header:
        raise InputError(f"{where} claims shape {shape} of {dtype}, {expected} bytes; the file holds {size - header}")
    if fortran and len(shape) > 1 and expected > WHOLE_LIMIT:
        raise InputError(f"{where} is stored column by column; save it with numpy.ascontiguousarray")
    native = dtype.newbyteorder("=")

    def rows() -> Iterator[NDArray[Any]]:
        with _named_errors(where, "cannot be read"), start() as file:
            _read_header(file)
            reader = _whole(file, shape, dtype) if fortran and len(shape) > 1 else _by_row(file, shape, dtype)
            for row in reader:
                yield row.astype(native, copy=False)

    return ArrayFile(native, shape, rows)


def _by_row(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    size = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0]):
        data = file.read(size)
        if len(data) != size:
            raise EOFError("it ends early")
        yield np.frombuffer(data, dtype).reshape(shape[1:])


def _whole(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    data = file.read(math.prod(shape) * dtype.itemsize)
    return iter(np.ascontiguousarray(np.frombuffer(data, dtype).reshape(shape, order="F")))


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read shape, column-major flag, type and length of a header; numpy's reader caps the length that it claims."""
    counted = _Counted(file)
    version = npy.read_magic(counted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # headers written by Python 2 are fine, and not the user's concern
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(counted)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(counted)
        else:
            raise ValueError(f"format version {version} is not supported")
    return shape, fortran, dtype, counted.count


class _Counted:
    """A file that counts what is read, and refuses a header that claims to be huge before reading it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_HEADER:
            raise ValueError(f"its header claims {size} bytes")
        data = self._file.read(size)
        self.count += len(data)
        return data


@contextmanager
def _named_errors(where: str, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy's header parser have no common base
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{where} {what} ({reason}); save it again with numpy") from error
