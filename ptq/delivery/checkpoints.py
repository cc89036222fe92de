"""A folder for what outlives an interrupted run: layers already solved, and tensors that are too large for memory.

A solved layer lies under a hash of everything it depends on, so that an interrupted run goes on where it stopped and
a changed model, recipe or version never meets an old result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.shards import SAVE_SECONDS
from ptq.core.affine import QuantParams
from ptq.core.archive import freeze, thaw
from ptq.core.encoding import IntegerWeight, LookupWeight
from ptq.core.errors import InputError
from ptq.core.plan import BiasEncoding, FloatBias
from ptq.core.solved_layer import AtOutput, SolvedLayer
from ptq.core.spec import PerAxis, PerBlock, PerTensor, QuantSpec
from ptq.core.storage import Alphabet, Words
from ptq.core.widths import Widths
from ptq.files.scratch import owned
from ptq.files.whole import write_whole

if sys.platform != "win32":
    import fcntl

TENSORS = "tensors.bin"
SUFFIX = ".layer"
KINDS = (
    Alphabet, AtOutput, BiasEncoding, FloatBias, IntegerWeight, LookupWeight, PerAxis, PerBlock, PerTensor,
    QuantParams, QuantSpec, SolvedLayer, Widths, Words,
)  # fmt: skip
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
    """Files of one run.

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
        """Forget everything; may be called again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Let others in should what is done inside not come to its end; what is solved stays."""
        try:
            yield
        except BaseException:
            if self.private:
                self.remove()
            self.lock.release()
            raise

    def store(self, name: str, array: NDArray[np.generic]) -> ir.TensorProtocol:
        """Put a tensor into the file of tensors; what comes back is read from there."""
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

    def find(self, key: str) -> IntegerWeight | None:
        """A layer solved before, or None."""
        found = _recalled(self.folder / f"{key}{SUFFIX}")
        return found if isinstance(found, IntegerWeight) else None

    def keep(self, key: str, encoding: IntegerWeight) -> None:
        """Keep a solved layer, whole or not at all."""
        write_whole(self.folder / f"{key}{SUFFIX}", freeze(encoding))


class Checkpoints:
    """Layers solved in a run that may be interrupted; written once in a while, so that short runs write nothing.

    Args:
        folder: Where they go; made when there is something to keep. None for nowhere.
        base: All that the whole run depends on, as a hash: what earlier layers became follows from it.
    """

    def __init__(self, folder: Path | None = None, base: str = "") -> None:
        self._folder, self._base = folder, base
        self._waiting: dict[Path, SolvedLayer] = {}
        self._saved = time.monotonic()

    def restore_or_solve(self, name: str, solve: Callable[[], SolvedLayer]) -> SolvedLayer:
        """The layer as an interrupted run solved it, or as it is solved now."""
        if self._folder is None:
            return solve()
        digest = hashlib.sha256(f"{self._base} {name}".encode()).hexdigest()
        path = self._folder / f"{digest}{SUFFIX}"
        found = _recalled(path)
        if isinstance(found, SolvedLayer):
            return found
        self._waiting[path] = solved = solve()
        if time.monotonic() > self._saved + SAVE_SECONDS:
            self._write()
        return solved

    def _write(self) -> None:
        for path, solved in self._waiting.items():
            with suppress(InputError, OSError):  # a help, nothing that a run depends on
                path.parent.mkdir(exist_ok=True)
                write_whole(path, freeze(solved.settled()))
        self._waiting.clear()
        self._saved = time.monotonic()


def _recalled(path: Path) -> object:
    """What a file holds; None if there is none, or it was cut short by a full disk."""
    if not path.is_file():
        return None
    try:
        return thaw(path.read_bytes(), KINDS)
    except (InputError, OSError):
        path.unlink(missing_ok=True)
        return None


def _locked(folder: Path) -> Lock | None:
    """What keeps others out; None if another run has it."""
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


def checkpoint_key(weight: NDArray[np.float32], settings: object) -> str:
    """What a layer's codes depend on, as a hash: its numbers, the settings, the versions that compute them."""
    digest = hashlib.sha256(np.ascontiguousarray(weight).data)
    digest.update(json.dumps([repr(settings), weight.shape, version("ptq"), version("numpy")]).encode())
    return digest.hexdigest()
