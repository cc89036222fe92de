"""Export for onnxruntime-web: a page, and a check for Node."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.errors import UnsupportedModelError
from ptq.exporters.bundle import Bundle, external_files, put_files, put_fixed

TYPES = ("float32", "uint8", "int8", "int32", "int64", "bool")


@dataclass(frozen=True)
class Web:
    """A static page that runs the model on samples, the float one beside it, and `npm run check` for Node."""

    def export(self, bundle: Bundle, folder: Path) -> None:
        """Write model, page and check into a folder.

        Args:
            bundle: The model and its examples.
            folder: Exists, empty.

        Raises:
            UnsupportedModelError: A browser cannot load or feed the model.
        """
        if external_files(bundle.model):
            raise UnsupportedModelError(f"{bundle.model.name} keeps weights beside it; a page loads one file")
        checked, beside = bundle.put_model(folder), folder / "float.onnx"
        if bundle.float_model is not None and not put_fixed(bundle.float_model, beside):
            shutil.copyfile(bundle.float_model, beside)
        output = next(iter(bundle.examples[0].outputs))
        samples = [
            {
                "inputs": {name: _value(array) for name, array in example.inputs.items()},
                "expected": _value(example.outputs[output]),
                "label": example.label,
            }
            for example in bundle.examples
        ]
        (folder / "samples.json").write_text(json.dumps({"model": checked, "output": output, "samples": samples}))
        put_files(folder, "index.html", "page.mjs", "model.mjs", "check.mjs", "package.json")


def _value(array: NDArray[Any]) -> dict[str, Any]:
    kind = str(array.dtype)
    if kind not in TYPES:
        raise UnsupportedModelError(
            f"a page cannot feed values of type {kind}; expected {', '.join(TYPES)}: change it, or export for arm64"
        )
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": kind, "dims": list(array.shape), "data": data}
