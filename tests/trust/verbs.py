"""The command line in forks, as `forks` serves it, with what reports and exports import loaded as well."""

from __future__ import annotations

from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

from tests.trust.forks import serve

if __name__ == "__main__":
    with redirect_stdout(StringIO()):  # answers go there, and nothing else
        for name in ("matplotlib.pyplot", "onnxruntime.tools.convert_onnx_models_to_ort", "ptq.api", "ptq.display"):
            import_module(name)
        from ptq.cli import main

    serve(main)
