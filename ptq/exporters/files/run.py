"""Runs the model beside this file on inputs.npz and compares with expected.npz. Needs onnxruntime and numpy.

A model that draws random numbers is run, and compared as `check`: the same model with fixed draws in their place.

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
    other = ~((a == b) | (np.isnan(a) & np.isnan(b)))  # infinity less infinity is no number
    return float(np.abs(b[np.isfinite(b)]).max(initial=0)), float(np.abs(a[other] - b[other]).max(initial=0))


def opened(path: Path) -> onnxruntime.InferenceSession:
    """Return a session of a model, with the operator libraries that were given."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for library in sys.argv[1:]:
        options.register_custom_ops_library(str(Path(library).resolve()))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> int:
    """Return 0 if every output is within 5 % of its largest value, else 1."""
    paths = [HERE / f"{name}.{kind}" for name in ("model", "check") for kind in ("ort", "onnx")]
    sessions = [opened(path) for path in paths if path.exists()]
    inputs, expected = np.load(HERE / "inputs.npz"), np.load(HERE / "expected.npz")
    feed = {name: inputs[name] for name in inputs.files}
    feed = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in feed.items()}
    for other in sessions[:-1]:
        other.run(None, feed)
    session = sessions[-1]
    names = [value.name for value in session.get_outputs()]
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
