"""Sessions of onnxruntime: models opened and run, refusals in one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.core.errors import InputError
from ptq.files.heap import trim
from ptq.files.scratch import scratch_folder
from ptq.models.draws import fixed_form, with_fixed_draws
from ptq.models.lean import PLAIN, message_without_weights
from ptq.models.source import INLINE_BYTES, ModelSource, weight_bytes
from ptq.runtime.opening import Optimization, open_session

SMALL_MODEL = 8 * 2**20
"""Bytes of weights up to which a model is opened as one message: others are not written out for it once more."""


class RunError(InputError):
    """Raised when onnxruntime cannot load or run a model; `naming` adds which one."""


@contextmanager
def naming(source: ModelSource) -> Iterator[None]:
    """Add the model's name to errors of onnxruntime within the context."""
    try:
        yield
    except RunError as error:
        raise InputError(f"{source}: {error}" if isinstance(source, str | Path) else str(error)) from error


@contextmanager
def runnable(model: ir.Model) -> Iterator[bytes | Path]:
    """Give the model in a form that onnxruntime opens: bytes, or a temporary file when it is too large for that."""
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
    fixed_draws: bool = True,
) -> Iterator[InferenceSession]:
    """Open a model, turning onnxruntime's refusal into one line.

    Args:
        model: The model.
        custom_ops: Libraries it needs.
        num_threads: Threads inside one operator.
        optimization: See `open_session`.
        weights: Numbers of its external initializers.
        fixed_draws: Let random operators draw the same numbers in every run and every form of the model, so that these
            can be compared; without it they run as they are, as for timing.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    if fixed_draws:
        model = with_fixed_draws(model) if isinstance(model, ir.Model) else fixed_form(model)
    if not isinstance(model, ir.Model):
        if isinstance(model, bytes) or Path(model).stat().st_size > SMALL_MODEL:
            trim()
        yield _open(model, custom_ops, num_threads, optimization, weights)
        return
    if SMALL_MODEL < weight_bytes(model) <= INLINE_BYTES and not weights:
        data, weights = _in_parts(model)
        trim()
        yield _open(data, custom_ops, num_threads, optimization, weights, packed=True)
        return
    with runnable(model) as form:
        yield _open(form, custom_ops, num_threads, optimization, weights)


def _in_parts(model: ir.Model) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Serialize a model without its large weights; weights that nothing reads are in neither part."""
    message, aside = message_without_weights(model)
    unused = {name for name in aside if not model.graph.initializers[name].uses()}
    unused -= {str(value.name) for value in model.graph.outputs}
    weights = {n: tensor.numpy() for n, tensor in aside.items() if tensor.dtype in PLAIN and n not in unused}
    kept = [tensor for tensor in message.graph.initializer if tensor.name not in unused]
    for tensor in kept:
        if tensor.name in aside and tensor.name not in weights:
            tensor.CopyFrom(ir.to_proto(aside[tensor.name]))
    if unused:
        others = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del message.graph.initializer[:]
        message.graph.initializer.extend(others)
    data: bytes = message.SerializeToString()
    return data, weights


def _open(
    form: str | Path | bytes,
    custom_ops: Sequence[str | Path],
    num_threads: int,
    optimization: Optimization,
    weights: Mapping[str, NDArray[Any]],
    *,
    packed: bool = False,
) -> InferenceSession:
    try:
        return open_session(
            form, custom_ops=custom_ops, num_threads=num_threads, optimization=optimization, weights=weights,
            packed=packed,
        )  # fmt: skip
    except Exception as error:  # onnxruntime has one exception class per status code and no common base
        hint = _next_step(error, custom_ops)
        raise RunError(f"onnxruntime cannot load the model: {one_line(error)}{hint}") from error


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
        raise RunError(f"onnxruntime fails to run the model on {shapes}: {one_line(error)}") from error
    return outputs


def one_line(error: BaseException) -> str:
    """Write a library's error in one line, without its source paths and signatures."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+ [^()]*(\((?:[^()]|\([^()]*\))*\)[^A-Z.]*)? ", "", text)
    return text[:300]
