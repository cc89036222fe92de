"""Open a model in onnxruntime. Needs numpy and onnxruntime, nothing else of this project's dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import onnxruntime
from numpy.typing import NDArray

Optimization = Literal["none", "all"]
QUIET = 4  # onnxruntime severity: only fatal messages; its errors reach us as exceptions anyway


def open_session(  # noqa: PLR0913 - one place knows every option of a session
    model: str | Path | bytes,
    *,
    custom_ops: Sequence[str | Path] = (),
    num_threads: int = 1,
    optimization: Optimization = "all",
    optimized_model_path: Path | None = None,
    profile_prefix: Path | None = None,
    weights: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    packed: bool = False,
) -> onnxruntime.InferenceSession:
    """Load a model for the CPU.

    Args:
        model: Path of an .onnx file, or a serialized model.
        custom_ops: Shared libraries that implement operators the model uses. Their code runs: trust them.
        num_threads: Threads inside one operator. One gives the same bits on every machine size.
        optimization: `none` runs the graph as it is written; `all` lets onnxruntime fuse.
        optimized_model_path: Where to leave the graph as onnxruntime runs it.
        weights: Numbers of initializers that the model names as external data. They are not packed for speed unless
            asked for, and have to stay where they are while the session lives.
        packed: Pack them for speed, as those of a model that holds its weights are.
        profile_prefix: Beginning of the path of a profile; `end_profiling` of the session writes it.

    Returns:
        The session.

    Raises:
        Exception: Whatever onnxruntime raises when it cannot load the model or a library.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimization == "all" else levels.ORT_DISABLE_ALL
    if optimized_model_path is not None:
        options.optimized_model_filepath = str(optimized_model_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
    for library in custom_ops:
        if not Path(library).is_file():  # opening a pipe would wait for ever
            raise FileNotFoundError(f"operator library {library}: no such regular file")
        options.register_custom_ops_library(str(library))
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
