"""Files of token ids as calibration data: .jsonl (an object per line) and .parquet (a column per input)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.calibration.sample import Sample
from ptq.core.errors import InputError
from ptq.modelfile import InputSpec

LABEL = "label"
MAX_LINE = 16 * 2**20  # characters


def token_rows(path: Path, specs: list[InputSpec]) -> Callable[[], Iterator[Sample]]:
    """Open a file of token ids; rows may have different lengths.

    Args:
        path: The file. Each row holds a list per input, and optionally `label`.
        specs: The model's inputs.

    Returns:
        A function that starts the stream; each sample has shape [1, length].

    Raises:
        InputError: pyarrow is missing for .parquet.
    """
    if path.suffix.lower() == ".jsonl":
        return lambda: _samples(_json_rows(path), specs, path.name)
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f'{path}: .parquet needs pyarrow; run pip install "ptq[data]"') from error
    return lambda: _samples(_parquet_rows(path, parquet), specs, path.name)


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{path.name}: line {number} is not JSON; expected an object per line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path.name}: line {number} is no object; expected input names with lists of numbers")
            yield row


def _parquet_rows(path: Path, parquet: Any) -> Iterator[Mapping[str, Any]]:
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except Exception as error:  # pyarrow's errors have no common base
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path.name}: not a readable parquet file ({reason})") from error


def _samples(rows: Iterator[Mapping[str, Any]], specs: list[InputSpec], where: str) -> Iterator[Sample]:
    for index, row in enumerate(rows):
        missing = sorted(spec.name for spec in specs if spec.name not in row)
        if missing:
            raise InputError(f"{where}: sample {index} lacks {', '.join(missing)}; found {', '.join(sorted(row))}")
        label = row.get(LABEL)
        yield Sample(
            {spec.name: _tokens(row[spec.name], spec, index, where) for spec in specs},
            label if isinstance(label, int) else None,
        )


def _tokens(values: Any, spec: InputSpec, index: int, where: str) -> NDArray[Any]:
    """A list of numbers as [1, length]. Numbers carry no type in JSON, so they take the input's if they fit it."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{where}: {spec.name} of sample {index} is ragged; expected a flat list") from error
    whole = array.dtype.kind in "iub" or spec.dtype.kind == "f"
    if array.ndim != 1 or array.dtype.kind not in "iufb" or not whole:
        raise InputError(f"{where}: {spec.name} of sample {index} is no flat list of numbers for {spec.dtype}")
    return array.astype(spec.dtype)[None]
