"""Runs the model beside this file on inputs.npz and compares with expected.npz. Needs onnxruntime and numpy.

python run.py [LIBRARY.so]
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return the largest value expected and the largest difference from it; of texts, which are the same or not, 1."""
    if expected.dtype.kind == "U":
        return 1.0, float((found.astype(str) != expected).any())
    a, b = found.astype(float), expected.astype(float)
    return float(np.abs(b).max(initial=0)), float(np.abs(a - b).max(initial=0))


def main() -> int:
    """Return 0 if every output is within 5 % of its largest value, else 1."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for library in sys.argv[1:]:
        options.register_custom_ops_library(str(Path(library).resolve()))
    model = next(path for path in (HERE / "model.ort", HERE / "model.onnx") if path.exists())
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs, expected = np.load(HERE / "inputs.npz"), np.load(HERE / "expected.npz")
    names = [value.name for value in session.get_outputs()]
    feed = {name: inputs[name] for name in inputs.files}
    feed = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in feed.items()}
    wrong = False
    for name, found in zip(names, session.run(names, feed), strict=True):
        if found.shape != expected[name].shape:
            print(f"{name}: shape {list(found.shape)}, expected {list(expected[name].shape)}")
            wrong = True
            continue
        largest, apart = difference(found, expected[name])
        print(f"{name}: largest value {largest:g}, largest difference {apart:g}")
        wrong = wrong or not apart <= 0.05 * largest
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
