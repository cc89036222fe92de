"""Runtime of quantized models. Needs numpy and onnxruntime only, so that a deployment can import it alone."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime

from ptq.runtime.native import native_path, native_status
from ptq.runtime.opening import open_session

__all__ = ["native_path", "native_status", "open_session", "session"]


def session(model: str | Path | bytes, *, num_threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a model with the operator library where that is usable; it says in the log (`ptq.runtime`) what it chose.

    Args:
        model: Path of an .onnx file, or a serialized model.
        num_threads: Threads inside one operator; 0 lets onnxruntime choose.

    Returns:
        The session.
    """
    library = native_path()
    logging.getLogger("ptq.runtime").info(native_status())
    return open_session(model, custom_ops=() if library is None else (library,), num_threads=num_threads)
