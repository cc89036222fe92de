"""The real models and data beside the checkout, and their independent evaluator, as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SAMPLES = {"resnet20": 512, "repvgg_cifar": 512, "squeezenet": 128, "mobilenet_vww": 128, "minilm": 256}


def evaluator(shared: Path) -> ModuleType:
    """Load `tools/workloads.py`."""
    spec = importlib.util.spec_from_file_location("workloads", shared / "tools/workloads.py")
    if spec is None or spec.loader is None:
        raise RuntimeError("the evaluator cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def limit(name: str) -> int | None:
    """How many evaluation samples the published figures use."""
    return 2000 if name in ("resnet20", "repvgg_cifar") else None
