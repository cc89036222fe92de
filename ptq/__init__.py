"""Post-training quantization of ONNX models for onnxruntime, with the proof beside the model.

result = ptq.quantize("model.onnx", "calibration.npz")
result.report.verdict.passed
result.save("model.int8.onnx")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ptq.core.errors import PtqError

if TYPE_CHECKING:
    from ptq.api import bench, calibrate, export, merge, quantize, report, squeeze, validate
    from ptq.job import Result
    from ptq.recipe import Goals, Recipe

__all__ = [
    "Goals", "PtqError", "Recipe", "Result", "bench", "calibrate", "export", "merge", "quantize", "report", "squeeze",
    "validate",
]  # fmt: skip

_HOMES = {
    "bench": "ptq.api",
    "calibrate": "ptq.api",
    "export": "ptq.api",
    "merge": "ptq.api",
    "quantize": "ptq.api",
    "report": "ptq.api",
    "squeeze": "ptq.api",
    "validate": "ptq.api",
    "Result": "ptq.job",
    "Goals": "ptq.recipe",
    "Recipe": "ptq.recipe",
}


def __getattr__(name: str) -> Any:
    """Resolve on first use: `ptq.core` lies below everything, and an eager import here would be circular."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ptq' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
