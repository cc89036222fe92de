"""A folder for what is too large for memory: tensors of the model under construction, and layers already solved.

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
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import QuantParams
from ptq.core.encoding import AffineEncoding
from ptq.core.errors import InputError
from ptq.core.spec import QuantSpec
from ptq.scratch import owned

if sys.platform != "win32":
    import fcntl

TENSORS = "tensors.bin"
ALIGNMENT = 4096
"""Offsets that can be mapped into memory."""


@dataclass(frozen=True)
class Workspace:
    """Files of one run.

    Attributes:
        folder: Where they are; exists.
        lock: Keeps other runs out while it is open; None where there is none.
        private: Whether no later run may go on from it.
    """

    folder: Path
    lock: int | None = None
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
            lock, taken = _locked(folder)
            if not taken:
                return Workspace(folder, lock)
        with _named(Path(tempfile.gettempdir())):
            return Workspace(Path(tempfile.mkdtemp(prefix=owned("ptq-"))), private=True)

    def remove(self) -> None:
        """Forget everything; may be called again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Let others in should what is done inside not come to its end; what is solved stays."""
        try:
            yield
        except BaseException:
            if self.private:
                self.remove()
            self.release()
            raise

    def release(self) -> None:
        """Let other runs in."""
        with suppress(OSError, TypeError):  # released before, or no lock
            os.close(self.lock)  # type: ignore[arg-type]

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

    def find(self, key: str, spec: QuantSpec) -> AffineEncoding | None:
        """A layer solved before, or None."""
        path = self.folder / f"{key}.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                params = QuantParams(arrays["scale"], arrays["zero_point"], spec)
                return AffineEncoding(arrays["codes"], params)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # cut short by a full disk
            path.unlink(missing_ok=True)
            return None

    def keep(self, key: str, encoding: AffineEncoding) -> None:
        """Keep a solved layer, whole or not at all."""
        path = self.folder / f"{key}.npz"
        temporary, params = path.with_suffix(".part"), encoding.params
        with _named(self.folder):
            with temporary.open("wb") as file:
                np.savez(file, codes=encoding.codes, scale=params.scale, zero_point=params.zero_point)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)


def _locked(folder: Path) -> tuple[int | None, bool]:
    """An open handle that keeps others out, and whether another run has it."""
    if sys.platform == "win32":
        return None, False
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None, True
    except OSError:  # some network file systems know no locks
        return handle, False
    return handle, False


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error


def layer_key(weight: NDArray[np.float32], settings: object) -> str:
    """What a layer's codes depend on, as a hash: its numbers, the settings, the versions that compute them."""
    digest = hashlib.sha256(np.ascontiguousarray(weight).data)
    digest.update(json.dumps([repr(settings), weight.shape, version("ptq"), version("numpy")]).encode())
    return digest.hexdigest()
