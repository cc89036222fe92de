"""onnxruntime alone, in processes of its own: does it open a model, and does it live through running it?"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from tests.trust.forks import serve

LEVELS = (GraphOptimizationLevel.ORT_ENABLE_ALL, GraphOptimizationLevel.ORT_DISABLE_ALL)
FREE = 2


def main(arguments: list[str], prog_name: str) -> None:
    """Open the model; with --run, run it on random numbers too, optimized and as it is."""
    path, *options = arguments
    opened = 0
    for level in LEVELS if options else LEVELS[:1]:
        settings = SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        settings.graph_optimization_level = level
        try:
            session = InferenceSession(path, settings, providers=["CPUExecutionProvider"])
            opened += 1
            if options:
                session.run(None, {value.name: _numbers(value.type, value.shape) for value in session.get_inputs()})
        except Exception as error:  # what it refuses is fine: this is about crashes
            print(f"{prog_name}: {' '.join(str(error).split())[:300]}")  # noqa: T201 - the answer
    raise SystemExit(0 if opened else 2)


def _numbers(kind: str, shape: list[Any]) -> Any:
    extents = [n if isinstance(n, int) and n >= 0 else FREE for n in shape]
    names = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.random.default_rng(1).integers(0, 2, extents).astype(names.get(name, name))


if __name__ == "__main__":
    serve(main)
