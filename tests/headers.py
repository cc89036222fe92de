"""onnxruntime's own C headers, which tests compare with and an exported C program is compiled with."""

from __future__ import annotations

import os
from pathlib import Path

FETCHED = Path(__file__).parents[1] / "build/ort/root"
"""Where `runtime/cpp/fetch_headers.sh build/ort` unpacks Debian's package."""


def official_headers() -> Path | None:
    """The folder of onnxruntime_c_api.h: below ORT_INCLUDE_DIR if that is set, else fetched; None if absent."""
    told = os.environ.get("ORT_INCLUDE_DIR")
    return next((path.parent for path in Path(told or FETCHED).rglob("onnxruntime_c_api.h")), None)
