"""Validation of a model file before anything in it is believed: checked in Python's integers, nothing allocated.

ONNX's own checker and onnxruntime each accept what the other refuses; neither counts what nested functions expand to.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ptq.core.errors import InputError

MAX_NODES, MAX_CALL_DEPTH = 1_000_000, 100
MAX_INPUT = 2**40
MIN_OPSET = 7
"""Oldest operator set that onnxruntime has kernels for."""

OPEN = -1
"""Extent by which older exporters say that one is open."""

EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN")
"""Operators whose constants have to be finite; elsewhere -inf is a mask."""
CONTAINERS = ("sequence_type", "map_type", "optional_type")
"""Types that hold others."""


def require_sound(proto: onnx.ModelProto, where: str, folder: Path | None) -> None:
    """Refuse a model that would hang, exhaust or mislead what reads it next.

    Args:
        proto: As parsed.
        where: What to call it.
        folder: Where its external data lies; None if it did not come from a file.

    Raises:
        InputError: Names the file, the tensor and the cause.
    """
    require_finite_expansion(proto, where)
    for entry in proto.opset_import:
        newest = onnx.defs.onnx_opset_version()
        if entry.domain in ("", "ai.onnx") and not MIN_OPSET <= entry.version <= newest:
            raise InputError(f"{where}: opset {entry.version}; expected {MIN_OPSET} to {newest}, export it again")
    require_tensors(proto, where)
    _require_plain_calls(proto, where)
    for tensor in tensors_of(proto):
        try:
            _check_tensor(tensor, folder)
        except (ValueError, OSError) as error:
            cause = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(f"{where}: tensor {tensor.name[:80]!r}: {cause}") from error


def require_tensors(proto: onnx.ModelProto, where: str) -> None:
    """Refuse inputs and outputs that are no tensors.

    Raises:
        InputError: Names the first one.
    """
    for value in proto.graph.input:
        _check_input(value, where)
    for value in proto.graph.output:
        _check_output(value, where)


def _check_input(value: onnx.ValueInfoProto, where: str) -> None:
    kind = value.type.tensor_type
    name = f"{where}: input {value.name[:80]!r} has"
    if value.type.HasField("tensor_type") and not _is_known(kind.elem_type):
        raise InputError(f"{name} the element type {kind.elem_type}, which is none of ONNX's")
    if (kinds := _containers(value)) and kinds != ["optional"]:
        raise InputError(
            f"{where}: input {value.name[:80]!r} is of type {' of '.join(kinds)}, expected a tensor; export the model "
            "from behind the operator that reads it, and feed what that makes"
        )
    extents = [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value") and dim.dim_value != OPEN]
    if min(extents, default=1) < 0 or math.prod(extents) > MAX_INPUT:
        raise InputError(f"{name} the extents {extents[:9]}; expected a tensor that fits into memory")


def _check_output(value: onnx.ValueInfoProto, where: str) -> None:
    """Refuse what no quality can be measured on: the sequence of maps that a ZipMap ends in, for one."""
    if kinds := _containers(value):
        raise InputError(
            f"{where}: output {value.name[:80]!r} is of type {' of '.join(kinds)}, expected a tensor; drop the "
            "ZipMap or Sequence operator that makes it (skl2onnx: zipmap=False) and give out its input"
        )


def _containers(value: onnx.ValueInfoProto) -> list[str]:
    """Name the types around a value's elements, the outermost first; none for a tensor."""
    kinds, kind = [], value.type
    while (which := kind.WhichOneof("value")) in CONTAINERS:
        kinds.append(which.removesuffix("_type"))
        holder = getattr(kind, which)
        kind = holder.value_type if which == "map_type" else holder.elem_type
    return kinds


def _require_plain_calls(proto: onnx.ModelProto, where: str) -> None:
    """Refuse calls of functions that carry bodies: what inlines functions cannot pass those on."""
    local = {(function.domain, function.name) for function in proto.functions}
    for function in proto.functions:
        if "" in (*function.input, *function.output):
            raise InputError(f"{where}: function {function.name[:80]!r} has an input or output without a name")
    waiting = [proto.graph, *proto.functions]
    while waiting:
        for node in waiting.pop().node:
            bodies = list(bodies_of(node))
            waiting += bodies
            if bodies and (node.domain, node.op_type) in local:
                raise InputError(f"{where}: a call of the local function {node.op_type[:80]!r} carries a body")


def require_finite_expansion(proto: onnx.ModelProto, where: str) -> None:
    """Refuse models that inlining would blow up: a few kilobytes of nested calls can mean 10^18 nodes."""
    bodies = {(function.domain, function.name): function.node for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
        if depth > MAX_CALL_DEPTH:
            raise InputError(
                f"{where}: functions or bodies are more than {MAX_CALL_DEPTH} deep in each other; export it again"
            )
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in bodies and key not in sizes:
                sizes[key] = size(bodies[key], depth + 1)
            total += sizes.get(key, 1) + sum(size(graph.node, depth + 1) for graph in bodies_of(node))
        return total

    found = size(proto.graph.node, 0)
    if found > MAX_NODES:
        raise InputError(f"{where}: its local functions expand to {found:.3g} nodes; expected at most {MAX_NODES}")


def require_finite_weights(model: ir.Model, where: str) -> None:
    """Refuse weights that no calibration can make sense of.

    Raises:
        InputError: Names the first one.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs if node.op_type in WEIGHTED and not node.domain else ():
            tensor = _constant(value)
            if tensor is None or isinstance(tensor, ir.ExternalTensor) or not tensor.dtype.is_floating_point():
                continue
            try:
                values = tensor.numpy()
            except ValueError as error:
                raise InputError(f"{where}: weight {str(tensor.name)[:80]!r}: {error}") from error
            with np.errstate(all="ignore"):
                finite = bool(np.isfinite(values.astype(np.float32, copy=False)).all())
            if not finite and value is not None:
                raise InputError(
                    f"{where}: weight {str(value.name)[:80]!r} of {node.op_type} {str(node.outputs[0].name)[:80]!r} "
                    "holds NaN or infinity (in float32); train or export it again"
                )


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    if value is None or value.const_value is not None:
        return None if value is None else value.const_value
    node = value.producer()
    attribute = node.attributes.get("value") if node is not None and node.op_type == "Constant" else None
    return attribute.as_tensor() if attribute is not None else None


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node carries, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors of the graph, its bodies, its functions, and attributes."""
    waiting = [proto.graph, *proto.functions]
    while waiting:
        part = waiting.pop()
        if isinstance(part, onnx.GraphProto):
            yield from part.initializer
            for sparse in part.sparse_initializer:
                yield sparse.values
                yield sparse.indices
        for node in part.node:
            waiting += bodies_of(node)
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _is_known(kind: int) -> bool:
    return kind in set(ir.DataType) and kind != ir.DataType.UNDEFINED


def _check_tensor(tensor: onnx.TensorProto, folder: Path | None) -> None:
    if not _is_known(tensor.data_type):
        raise ValueError(f"element type {tensor.data_type} is none of ONNX's")
    if min(tensor.dims, default=0) < 0:
        raise ValueError(f"shape {list(tensor.dims)} has a negative extent")
    kind, external = ir.DataType(tensor.data_type), tensor.data_location == onnx.TensorProto.EXTERNAL
    if kind == ir.DataType.STRING:
        if external:
            raise ValueError("text cannot be external data")
        return
    num_bytes = -(-math.prod(tensor.dims) * kind.bitwidth // 8)
    if external:
        _check_external(tensor, num_bytes, folder)
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != num_bytes:
        raise ValueError(f"{len(tensor.raw_data)} bytes of data; its shape and type need {num_bytes}")


def _check_external(tensor: onnx.TensorProto, num_bytes: int, folder: Path | None) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = sorted(set(entries) - set(EXTERNAL_KEYS))
    if unknown or len(entries) < len(tensor.external_data):
        raise ValueError(
            f"external data has the key {unknown[0][:40]!r}" if unknown else "external data has a key twice"
        )
    if folder is None:
        raise ValueError("external data of a model that is no file; give its path")
    path = _contained(entries.get("location", ""), folder)
    offset = _number(entries, "offset", 0)
    length = _number(entries, "length", num_bytes)
    size = path.stat().st_size
    if length != num_bytes:
        raise ValueError(f"external data has {length} bytes; its shape and type need {num_bytes}")
    if offset + length > size:
        raise ValueError(f"external data ends at byte {offset + length} of a file of {size}")


def _number(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"external data: {key} is {text[:40]!r}; expected a number of bytes")
    return int(text)


def _contained(location: str, folder: Path) -> Path:
    """Return the path of a file, which has to be an ordinary one within the folder, reached by no link."""
    shown = f"external data {location[:80]!r}"
    inner = Path(location)
    if not location or "\0" in location or inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"{shown} is no path within the model's folder")
    path = folder / inner
    entry = path.lstat()
    if any((folder / Path(*inner.parts[: count + 1])).is_symlink() for count in range(len(inner.parts))):
        raise ValueError(f"{shown} is or lies behind a symbolic link")
    if not stat.S_ISREG(entry.st_mode):
        raise ValueError(f"{shown} is no regular file")
    if entry.st_nlink > 1:
        raise ValueError(f"{shown} has other names too (hard links)")
    return path
