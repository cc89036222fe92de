"""A folder for what is too large for memory: tensors of the model under construction, and layers already solved.

A solved layer lies under a hash of everything it depends on, so that an interrupted run goes on where it stopped and
a changed model, recipe or version never meets an old result.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
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

TENSORS = "tensors.bin"
ALIGNMENT = 4096
"""Offsets that can be mapped into memory."""


@dataclass(frozen=True)
class Workspace:
    """Files of one run.

    Attributes:
        folder: Where they are; exists.
    """

    folder: Path

    @staticmethod
    def at(folder: Path) -> Workspace:
        """Use a folder, which is made if it is missing.

        Raises:
            InputError: It cannot be made.
        """
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}") from error
        return Workspace(folder)

    def store(self, name: str, array: NDArray[np.generic]) -> ir.TensorProtocol:
        """Put a tensor into the file of tensors; what comes back is read from there."""
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        data = tensor.tobytes()
        if len(data) < ALIGNMENT:
            return tensor
        with (self.folder / TENSORS).open("ab") as file:
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
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            params = encoding.params
            np.savez(file, codes=encoding.codes, scale=params.scale, zero_point=params.zero_point)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def layer_key(weight: NDArray[np.float32], settings: object) -> str:
    """What a layer's codes depend on, as a hash: its numbers, the settings, the versions that compute them."""
    digest = hashlib.sha256(np.ascontiguousarray(weight).data)
    digest.update(json.dumps([repr(settings), weight.shape, version("ptq"), version("numpy")]).encode())
    return digest.hexdigest()
