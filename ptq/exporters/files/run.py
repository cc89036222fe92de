"""Runs the model beside this file on inputs.npz and compares with expected.npz. Needs onnxruntime and numpy.

python run.py [LIBRARY.so]
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent


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
    wrong = False
    for name, found in zip(names, session.run(names, {k: inputs[k] for k in inputs.files}), strict=True):
        largest, apart = np.abs(expected[name]).max(initial=0), np.abs(found - expected[name]).max(initial=0)
        print(f"{name}: largest value {largest:g}, largest difference {apart:g}")
        wrong = wrong or not apart <= 0.05 * largest
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
