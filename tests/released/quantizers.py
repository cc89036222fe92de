"""onnxruntime's own quantizer as people use it: python -m tests.released.quantizers static|dynamic MODEL DATA OUT."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Samples of an .npz, one after the other."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays, self.index = arrays, 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        index, self.index = self.index, self.index + 1
        if index >= len(next(iter(self.arrays.values()))):
            return None
        return {name: np.asarray(array[index]) for name, array in self.arrays.items()}


def preprocessed(model: str, folder: str) -> str:
    """Return the model with shapes and folded constants; as it is if that cannot be had."""
    out = str(Path(folder) / "prepared.onnx")
    for symbolic in (False, True):
        try:
            quant_pre_process(model, out, skip_symbolic_shape=symbolic)
        except Exception:
            continue
        return out
    return model


def static(model: str, data: str, out: str) -> None:
    """Quantize with ranges from data: scales per channel if what comes of that loads, else per tensor."""
    for per_channel in (True, False):
        feeds = Feeds(dict(np.load(data)))
        quantize_static(model, out, feeds, quant_format=QuantFormat.QDQ, per_channel=per_channel)
        try:
            InferenceSession(out, providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return


def main() -> None:
    """Quantize."""
    how, model, data, out = sys.argv[1], *(str(Path(path).resolve()) for path in sys.argv[2:])
    with TemporaryDirectory() as folder, contextlib.chdir(folder):  # shape inference leaves files where it runs
        prepared = preprocessed(model, folder)
        if how == "dynamic":
            quantize_dynamic(prepared, out)
        else:
            static(prepared, data, out)


if __name__ == "__main__":
    main()
