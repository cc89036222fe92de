"""The finished model on its way to the user: packed once, verified as a file, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ptq.core.errors import InputError
from ptq.modelfile import INLINE_BYTES, fingerprint, weight_bytes, write_atomically

DATA_SUFFIX = ".data"
PRODUCTS = ("", ".card.json", ".card.md", ".bench.json", DATA_SUFFIX)
"""What is written, as suffixes of the model's path."""


@dataclass(frozen=True)
class Delivery:
    """A quantized model.

    Attributes:
        model: The graph.
        data: Its serialized form; None when it is too large for one file and its weights go beside it.
    """

    model: ir.Model
    data: bytes | None

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return len(self.data) if self.data is not None else weight_bytes(self.model)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file, or of the graph without weights when those are stored beside it."""
        return fingerprint(self.data) if self.data is not None else ""

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """The model as the file it will be, in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
            path = Path(folder) / "model.onnx"
            try:
                self._write(path)
            except OSError as error:
                raise InputError(f"cannot write a temporary file in {folder}: {error.strerror}") from error
            yield path

    def save(self, path: Path) -> None:
        """Write the model so that no half-written file ever stands at `path`.

        Raises:
            InputError: The path cannot be written.
        """
        if self.data is not None:
            write_atomically(path, self.data)
            return
        try:
            with tempfile.TemporaryDirectory(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent) as folder:
                self._write(Path(folder) / path.name)
                # Weights first: the graph that names them is the commit point.
                for name in (path.name + DATA_SUFFIX, path.name):
                    (Path(folder) / name).replace(path.parent / name)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    def _write(self, path: Path) -> None:
        if self.data is not None:
            path.write_bytes(self.data)
        else:
            ir.save(self.model.clone(), path, external_data=path.name + DATA_SUFFIX)


def pack(model: ir.Model, metadata: Mapping[str, str]) -> Delivery:
    """Serialize a lowered model.

    Args:
        model: The quantized graph; its own metadata is kept.
        metadata: Entries to add to it.

    Returns:
        The delivery.
    """
    model.metadata_props.update(metadata)
    _drop_inferable(model)
    constants = [value.const_value for value in model.graph.initializers.values()]
    large = weight_bytes(model) > INLINE_BYTES or any(isinstance(each, ir.ExternalTensor) for each in constants)
    return Delivery(model, None if large else ir.to_proto(model).SerializeToString(deterministic=True))


def _drop_inferable(model: ir.Model) -> None:
    """Leave out types and shapes that every runtime infers; custom operators are opaque, so their models keep them."""
    if any(node.domain for node in model.graph):
        return
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None


def require_writable(output: Path, inputs: Sequence[Path]) -> None:
    """Find out before the work starts whether the result can be written.

    Args:
        output: Where the model goes; its card, measurements and weights go beside it.
        inputs: Files and folders of files that must not be overwritten.

    Raises:
        InputError: One of the paths is a folder, a device or pipe, or an input, or cannot be written.
    """
    try:
        _require_writable(output, inputs)
    except OSError as error:
        raise InputError(f"cannot write {str(output)[:300]}: {error.strerror}") from error


def _require_writable(output: Path, inputs: Sequence[Path]) -> None:
    for path in (output.with_name(output.name + suffix) for suffix in PRODUCTS) if output.name else (output,):
        if not _is_there(path):
            continue
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file name")
        if not path.is_file():
            raise InputError(f"cannot write {path}: it is a device, a pipe or a broken link; choose another path")
        for other in inputs:
            if _is_there(other) and (path.samefile(other) or _is_image_of(path, other)):
                raise InputError(f"cannot write {path}: it is also the input {other}; choose another output path")
    if not output.parent.is_dir():
        raise InputError(f"cannot write {output}: no such folder {output.parent}; create it first")
    handle, name = tempfile.mkstemp(prefix=f".{output.name[:80]}.", suffix=".tmp", dir=output.parent)
    os.close(handle)
    Path(name).unlink()


def _is_there(path: Path) -> bool:
    """Whether anything has the name, be it a link to nothing; a name that is too long is an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_image_of(path: Path, folder: Path) -> bool:
    """Whether a file belongs to a folder of calibration data, and is no earlier model that merely lies there."""
    within = folder.is_dir() and path.resolve().is_relative_to(folder.resolve())
    return within and not path.name.endswith((".onnx", *PRODUCTS[1:]))
