"""Write what the examples work on, `python model.py FOLDER`: model.onnx and calib.npz, a small network and its data.

In a project of your own both files are there already.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ptq.demo.data import MODEL, load

folder = Path(sys.argv[1])
shutil.copyfile(MODEL, folder / "model.onnx")
_, calibration, _ = load()
calibration.save(folder / "calib.npz")
