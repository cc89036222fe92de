"""Running quantized models. Needs numpy and onnxruntime only, so that a deployment can import it alone."""

from __future__ import annotations

from ptq.runtime.session import open_session

__all__ = ["open_session"]
