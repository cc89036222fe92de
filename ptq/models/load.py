"""Reading of models from wherever they are: checked by our own code first, put right where they can be."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from ptq.core.errors import InputError
from ptq.files.heap import trim
from ptq.files.whole import read_regular_file
from ptq.models.foreign import check
from ptq.models.lean import copied, give_weights, set_weights_aside
from ptq.models.repairs import free_extents, give_shapes, make_dense, name_apart, put_in_order
from ptq.models.sessions import one_line
from ptq.models.source import CHANGED, INLINE_BYTES, MAX_PROTOBUF_BYTES, ModelSource, weight_bytes
from ptq.models.validation import require_finite_weights, require_sound, require_tensors

WHAT = "a model file", "store its weights as external data"


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
        require_tensors(source, "model")
        return ir.from_proto(source)
    if isinstance(source, bytes):
        return _parse(source, "model bytes", None)
    path = Path(source).absolute()
    return _parse(read_regular_file(path, MAX_PROTOBUF_BYTES, *WHAT), str(source), path)


def _parse(data: bytes, where: str, path: Path | None) -> ir.Model:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise InputError(f"{where}: not an ONNX model (protobuf says: {error}); export it again") from error
    if not proto.ir_version or not (proto.graph.node or proto.graph.output):
        raise InputError(f"{where}: not an ONNX model (no graph in it); export it again")
    del data
    require_sound(proto, where, None if path is None else path.parent)
    repairs = (name_apart, put_in_order, free_extents, give_shapes)
    changed = any([make_dense(proto, where), *(repair(proto) for repair in repairs)])
    weights = set_weights_aside(proto)
    proto = copied(proto) if weights else proto  # the message that came keeps what it has held
    try:
        check(proto)
    except Exception as error:  # of several types, its own and plain ones
        raise InputError(f"{where}: invalid ONNX model: {one_line(error)}") from error
    try:
        model = ir.from_proto(proto)
        give_weights(model, weights)
        if path is not None:
            _load_external(model, path.parent)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # one type of its own for every layer it comes through
        raise InputError(f"{where}: cannot read the model: {one_line(_innermost(error))}") from error
    if weights:
        del proto
        trim()
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
        raise InputError(f"external data of {', '.join(names[:3])}: {one_line(error)}") from error
