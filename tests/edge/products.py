"""Runs operator models one by one and compares bits. Needs onnxruntime and numpy only: it runs on other processors.

python products.py LIBRARY FOLDER    with FOLDER/N.onnx and FOLDER/N.npz of x and y
"""

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(library: str, folder: Path) -> int:
    """How many models differ, in any kernel."""
    wrong, models = 0, sorted(folder.glob("*.onnx"))
    for path in models:
        arrays = np.load(path.with_suffix(".npz"))
        for kernels in ("", "ref"):
            os.environ["PTQ_KERNELS"] = kernels
            options = onnxruntime.SessionOptions()
            options.register_custom_ops_library(library)
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            wrong += not np.array_equal(session.run(None, {"x": arrays["x"]})[0], arrays["y"], equal_nan=True)
    print(f"{len(models)} models, {wrong} differ")
    return int(wrong > 0 or not models)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
