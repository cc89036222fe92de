"""Export of a C program for a machine like this one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.core.errors import UnsupportedModelError
from ptq.exporters.bundle import Arrays, Bundle, put_files
from ptq.runtime.native import native_path

TYPES = {
    "float32": "FLOAT", "float64": "DOUBLE", "float16": "FLOAT16", "uint8": "UINT8", "int8": "INT8",
    "int32": "INT32", "int64": "INT64", "bool": "BOOL",
}  # fmt: skip
MOST_AXES = 8


@dataclass(frozen=True)
class Native:
    """The model, the operator library, and a C program with a Makefile that runs them and checks the outputs."""

    def export(self, bundle: Bundle, folder: Path) -> None:
        """Write model, library and C program into a folder.

        Args:
            bundle: The model and its examples.
            folder: Exists, empty.

        Raises:
            UnsupportedModelError: A value has a type that the program cannot feed.
        """
        checked = bundle.put_model(folder)
        bundle.put_check(folder)
        put_files(folder, "main.c", "Makefile")
        first, library = bundle.examples[0], native_path()
        lines = [*HEADER, f'#define CHECKED "{checked}"']
        for title, stem, arrays in (("INPUTS", "input", first.inputs), ("OUTPUTS", "expected", first.outputs)):
            lines += _table(title, stem, arrays)
            for index, array in enumerate(arrays.values()):
                np.ascontiguousarray(array).tofile(folder / f"{stem}_{index}.bin")
        (folder / "model.h").write_text("\n".join(lines) + "\n")
        if library is not None:
            shutil.copyfile(library, folder / library.name)


HEADER = (
    "/* What to run, and its values, written by `ptq export`. */",
    "typedef struct {",
    "    const char *name, *file;",
    "    ONNXTensorElementDataType type;",
    "    size_t rank;",
    f"    int64_t dims[{MOST_AXES}];",
    "    size_t bytes;",
    "} Value;",
)


def _table(title: str, stem: str, arrays: Arrays) -> list[str]:
    rows = [_row(name, f"{stem}_{index}.bin", array) for index, (name, array) in enumerate(arrays.items())]
    return [f"#define NUM_{title} {len(rows)}", f"static const Value {title}[NUM_{title}] = {{", *rows, "};"]


def _row(name: str, file: str, array: NDArray[Any], types: Mapping[str, str] = TYPES) -> str:
    kind = types.get(str(array.dtype))
    if kind is None or array.ndim > MOST_AXES:
        kinds = f"{', '.join(types)} with up to {MOST_AXES} axes"
        raise UnsupportedModelError(
            f"{name} is {array.dtype} with {array.ndim} axes; C programs pass {kinds}; export for arm64, or drop it"
        )
    dims = ", ".join(str(extent) for extent in array.shape) or "0"
    # JSON's escapes of printable ASCII are C's.
    return (
        f"    {{{json.dumps(name)}, {json.dumps(file)}, ONNX_TENSOR_ELEMENT_DATA_TYPE_{kind}, "
        f"{array.ndim}, {{{dims}}}, {array.nbytes}}},"
    )
