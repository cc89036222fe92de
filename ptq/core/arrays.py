"""Types of arrays that whole rooms speak of: reals to compute with, reals to store, and what a model is run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
"""Reals in double precision: what statistics and solvers compute with."""

Single = NDArray[np.float32]
"""Reals in single precision: what models store and onnxruntime computes with."""

Feed = Mapping[str, NDArray[Any]]
"""One sample: model input -> its array."""
