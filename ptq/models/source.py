"""Sources of models, and what is known of a model before it is run: inputs, size, hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ptq.core.errors import InputError
from ptq.models.validation import tensors_of

ModelSource = str | Path | bytes | onnx.ModelProto | ir.Model
INLINE_BYTES = 1_500_000_000  # above this, weights go to a file of their own
MAX_PROTOBUF_BYTES = 2**31 - 1
CHANGED = "changed"  # mark of a model that could only be read by writing parts of it in another way


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name.
        dtype: Element type.
        shape: Extents; a string or None where the extent is free. None if even the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        extents = "?" if self.shape is None else ", ".join(str(n) if n is not None else "?" for n in self.shape)
        return f"{self.name}: {self.dtype} [{extents}]"


def external_files(path: Path) -> tuple[Path, ...]:
    """List the files beside a model that hold its weights; none if the model cannot be read: `load_model` says why."""
    try:
        readable = path.is_file() and path.stat().st_size <= MAX_PROTOBUF_BYTES
        readable = readable and _mentions(path, b"location")
        proto = onnx.load(str(path), load_external_data=False) if readable else onnx.ModelProto()
    except Exception:
        return ()
    tensors = (tensor for tensor in tensors_of(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return tuple(path.parent / location for location in sorted(locations) if location and "\0" not in location)


def _mentions(path: Path, word: bytes) -> bool:
    """Whether a file has some bytes in it; it is read piece by piece, each with the end of the one before."""
    end = b""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            if word in end + piece:
                return True
            end = piece[-len(word) :]
    return False


def runnable_source(source: ModelSource, model: ir.Model) -> str | Path | bytes:
    """Return the model as it came, in a form that onnxruntime opens."""
    if isinstance(source, ir.Model | onnx.ModelProto) or model.meta.get(CHANGED):
        data: bytes = ir.to_proto(model).SerializeToString()
        return data
    return source


def source_bytes(source: ModelSource, model: ir.Model) -> int:
    """Return the size of the model as it came: its file and the external data it names."""
    if not isinstance(source, str | Path):
        return len(source) if isinstance(source, bytes) else weight_bytes(model)
    return sum(path.stat().st_size for path in (Path(source), *external_files(Path(source))))


def source_fingerprint(source: ModelSource, model: ir.Model) -> str:
    """Return the SHA-256 of the model file, or of the serialized graph when there is no file."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return fingerprint(
        source if isinstance(source, bytes) else ir.to_proto(model).SerializeToString(deterministic=True)
    )


def fingerprint(data: bytes) -> str:
    """Return the SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """List the inputs that have to be fed: graph inputs that are not also weights."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None:
            raise InputError(f"model input {value.name!r} has no element type; expected a tensor")
        extents = None if value.shape is None else tuple(_extent(n) for n in value.shape)
        specs.append(InputSpec(str(value.name), value.dtype.numpy(), extents))
    return tuple(specs)


def _extent(extent: int | ir.SymbolicDim) -> int | str | None:
    return extent if isinstance(extent, int) else extent.value if isinstance(extent.value, str) else None


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all initializers, bytes."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    return sum(_num_bytes(tensor) for tensor in constants if tensor is not None)


def _num_bytes(tensor: ir.TensorProtocol) -> int:
    return sum(map(len, tensor.numpy().reshape(-1))) if tensor.dtype == ir.DataType.STRING else tensor.nbytes
