"""Models between disk, memory and onnxruntime: load, describe, run, and write atomically. No graph changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.core.errors import InputError
from ptq.files import read_regular_file
from ptq.repairs import make_dense, name_apart, put_in_order
from ptq.runtime.opening import Optimization, open_session
from ptq.scratch import scratch_folder
from ptq.validation import require_finite_weights, require_sound, tensors_of

ModelSource = str | Path | bytes | onnx.ModelProto | ir.Model
MAX_PROTOBUF_BYTES = 2**31 - 1
WHAT = "a model file", "store its weights as external data"
CHANGED = "changed"  # mark of a model that could only be read by writing parts of it in another way
INLINE_BYTES = 1_500_000_000  # above this, weights go to a file of their own


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


class RunError(InputError):
    """Onnxruntime cannot load or run a model; which one, `naming` says."""


@contextmanager
def naming(source: ModelSource) -> Iterator[None]:
    """Add the name of the model that the work inside is about to what onnxruntime says of it."""
    try:
        yield
    except RunError as error:
        raise InputError(f"{source}: {error}" if isinstance(source, str | Path) else str(error)) from error


def load_model(source: ModelSource) -> ir.Model:
    """Read a model from wherever it is.

    Args:
        source: Path, serialized bytes, `onnx.ModelProto` or `onnx_ir.Model` (copied, so the caller's stays as it is).

    Returns:
        The model; external weights stay on disk until they are used.

    Raises:
        InputError: The file is missing, not a regular file, too large, not ONNX, or broken.
    """
    if isinstance(source, ir.Model):
        return source.clone()
    if isinstance(source, onnx.ModelProto):
        return ir.from_proto(source)
    if isinstance(source, bytes):
        return _parse(source, "model bytes", None)
    path = Path(source).absolute()
    return _parse(read_regular_file(path, MAX_PROTOBUF_BYTES, *WHAT), str(source), path)


def external_files(path: Path) -> tuple[Path, ...]:
    """Files beside a model that hold its weights; none where the model cannot be read, which `load_model` words."""
    try:
        readable = path.is_file() and path.stat().st_size <= MAX_PROTOBUF_BYTES
        proto = onnx.load(str(path), load_external_data=False) if readable else onnx.ModelProto()
    except Exception:
        return ()
    tensors = (tensor for tensor in tensors_of(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return tuple(path.parent / location for location in sorted(locations) if location and "\0" not in location)


def runnable_source(source: ModelSource, model: ir.Model) -> str | Path | bytes:
    """The model as it came, in a form that onnxruntime opens."""
    if isinstance(source, ir.Model | onnx.ModelProto) or model.meta.get(CHANGED):
        data: bytes = ir.to_proto(model).SerializeToString()
        return data
    return source


def source_bytes(source: ModelSource, model: ir.Model) -> int:
    """Size of the model as it came: its file and the external data it names."""
    if not isinstance(source, str | Path):
        return len(source) if isinstance(source, bytes) else weight_bytes(model)
    return sum(path.stat().st_size for path in (Path(source), *external_files(Path(source))))


def source_fingerprint(source: ModelSource, model: ir.Model) -> str:
    """SHA-256 of the model file (of the serialized graph when there is no file)."""
    if isinstance(source, str | Path):
        return fingerprint(Path(source).read_bytes())
    return fingerprint(
        source if isinstance(source, bytes) else ir.to_proto(model).SerializeToString(deterministic=True)
    )


def _parse(data: bytes, where: str, path: Path | None) -> ir.Model:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise InputError(f"{where}: not an ONNX model (protobuf says: {error}); export it again") from error
    if not proto.ir_version or not (proto.graph.node or proto.graph.output):
        raise InputError(f"{where}: not an ONNX model (no graph in it); export it again")
    require_sound(proto, where, None if path is None else path.parent)
    changed = any([make_dense(proto, where), name_apart(proto), put_in_order(proto)])
    try:
        onnx.checker.check_model(proto if path is None or changed else str(path))
    except Exception as error:  # of several types, its own and plain ones
        raise InputError(f"{where}: invalid ONNX model: {_one_line(error)}") from error
    try:
        model = ir.from_proto(proto)
        if path is not None:
            _load_external(model, path.parent)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # one type of its own for every layer it comes through
        raise InputError(f"{where}: cannot read the model: {_one_line(_innermost(error))}") from error
    require_finite_weights(model, where)
    model.meta[CHANGED] = changed
    return model


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _load_external(model: ir.Model, folder: Path) -> None:
    """Point external tensors at the model's folder, and read them unless they are large."""
    ir.external_data.set_base_dir(model.graph, folder)
    if weight_bytes(model) > INLINE_BYTES:
        return
    try:
        ir.external_data.load_to_model(model)
    except (OSError, ValueError) as error:
        constants = {name: value.const_value for name, value in model.graph.initializers.items()}
        names = [name for name, tensor in constants.items() if isinstance(tensor, ir.ExternalTensor)]
        raise InputError(f"external data of {', '.join(names[:3])}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    """What a library says, in one line, without its source paths and signatures."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+ [^()]*(\((?:[^()]|\([^()]*\))*\)[^A-Z.]*)? ", "", text)
    return text[:300]


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs that have to be fed (graph inputs that are not also weights)."""
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
    """Bytes of all initializers."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    return sum(_num_bytes(tensor) for tensor in constants if tensor is not None)


def _num_bytes(tensor: ir.TensorProtocol) -> int:
    return sum(map(len, tensor.numpy().reshape(-1))) if tensor.dtype == ir.DataType.STRING else tensor.nbytes


@contextmanager
def runnable(model: ir.Model) -> Iterator[bytes | Path]:
    """The model in a form that onnxruntime opens: bytes, or a temporary file when it is too large for that."""
    if weight_bytes(model) <= INLINE_BYTES:
        yield ir.to_proto(model).SerializeToString()
        return
    with scratch_folder() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model.clone(), path, external_data="model.onnx.data")
        yield path


@contextmanager
def session_of(
    model: ir.Model | str | Path | bytes,
    *,
    custom_ops: Sequence[str | Path] = (),
    num_threads: int = 1,
    optimization: Optimization = "all",
    weights: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> Iterator[InferenceSession]:
    """Open an in-memory model, turning onnxruntime's refusal into one line.

    Args:
        model: The model.
        custom_ops: Libraries it needs.
        num_threads: Threads inside one operator.
        optimization: See `open_session`.
        weights: Numbers of its external initializers.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    if not isinstance(model, ir.Model):
        yield _open(model, custom_ops, num_threads, optimization, weights)
        return
    with runnable(model) as form:
        yield _open(form, custom_ops, num_threads, optimization, weights)


def _open(
    form: str | Path | bytes,
    custom_ops: Sequence[str | Path],
    num_threads: int,
    optimization: Optimization,
    weights: Mapping[str, NDArray[Any]],
) -> InferenceSession:
    try:
        return open_session(
            form, custom_ops=custom_ops, num_threads=num_threads, optimization=optimization, weights=weights
        )
    except Exception as error:  # onnxruntime has one exception class per status code and no common base
        raise RunError(
            f"onnxruntime cannot load the model: {_one_line(error)}{_next_step(error, custom_ops)}"
        ) from error


def _next_step(error: Exception, custom_ops: Sequence[str | Path]) -> str:
    if "only *guarantees* support" in str(error):  # an opset that is newer than it
        return "; export it again with an older opset, or install a newer onnxruntime"
    return "" if custom_ops else "; if it needs custom operators, pass --custom-ops LIBRARY"


def run(
    session: InferenceSession, feed: dict[str, NDArray[Any]], names: Sequence[str] | None = None
) -> list[NDArray[Any]]:
    """Run once, turning onnxruntime's refusal into one line.

    Raises:
        InputError: The model fails on this input.
    """
    try:
        outputs: list[NDArray[Any]] = session.run(names, feed)
    except Exception as error:
        shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feed.items())
        raise RunError(f"onnxruntime fails to run the model on {shapes}: {_one_line(error)}") from error
    return outputs


def fingerprint(data: bytes) -> str:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
