"""Workspace of a run: a folder for tensors that are too large for memory, and for what outlives an interrupted run."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.errors import InputError
from ptq.files.scratch import owned

if sys.platform != "win32":
    import fcntl

TENSORS = "tensors.bin"
ALIGNMENT = 4096
"""Offsets that can be mapped into memory."""


class Lock:
    """An open handle that keeps other runs out of a folder; closed once, as its number may soon be another file's.

    Args:
        handle: What is open; None where there is nothing.
    """

    def __init__(self, handle: int | None = None) -> None:
        self._handle = handle

    def release(self) -> None:
        """Let other runs in; may be called again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


@dataclass(frozen=True)
class Workspace:
    """Folder of one run's files.

    Attributes:
        folder: Where they are; exists.
        lock: Keeps other runs out.
        private: Whether no later run may go on from it.
    """

    folder: Path
    lock: Lock = field(default_factory=Lock, compare=False)
    private: bool = False

    @staticmethod
    def at(folder: Path | None) -> Workspace:
        """Use a folder, which is made if it is missing; one of our own if there is none, or another run uses it.

        Raises:
            InputError: It cannot be made.
        """
        if folder is not None:
            with _named(folder):
                folder.mkdir(exist_ok=True)
            lock = _locked(folder)
            if lock is not None:
                return Workspace(folder, lock)
        with _named(Path(tempfile.gettempdir())):
            return Workspace(Path(tempfile.mkdtemp(prefix=owned("ptq-"))), private=True)

    def remove(self) -> None:
        """Remove the folder and all in it; may be called again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Let other runs in if the work inside does not come to its end; what is solved stays."""
        try:
            yield
        except BaseException:
            if self.private:
                self.remove()
            self.lock.release()
            raise

    def store(self, name: str, array: NDArray[np.generic]) -> ir.TensorProtocol:
        """Put a tensor into the file of tensors; the result is read from there."""
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        data = tensor.tobytes()
        if len(data) < ALIGNMENT:
            return tensor
        with _named(self.folder), (self.folder / TENSORS).open("ab") as file:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            offset = file.tell()
            file.write(data)
        shape = ir.Shape(array.shape)
        return ir.ExternalTensor(
            TENSORS, offset, len(data), tensor.dtype, shape=shape, name=name, base_dir=str(self.folder)
        )

    def restart(self) -> None:
        """Forget the tensors of an interrupted run; solved layers stay."""
        (self.folder / TENSORS).unlink(missing_ok=True)


def _locked(folder: Path) -> Lock | None:
    """Lock a folder for this run; None if another run has it."""
    if sys.platform == "win32":
        return Lock()
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # some network file systems know no locks
        return Lock(handle)
    return Lock(handle)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
