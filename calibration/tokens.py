"""Files of token ids as calibration data: .jsonl (an object per line) and .parquet (a column per input)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq.calibration.sample import Sample
from ptq.core.errors import InputError
from ptq.models.source import InputSpec

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
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(functools.partial(file.readline, MAX_LINE), ""), start=1):
                if line.strip():
                    yield _json_row(line, f"{path.name}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: cannot read it as UTF-8 text ({error}); save it again") from error


def _json_row(line: str, where: str) -> Mapping[str, Any]:
    if len(line) >= MAX_LINE:
        raise InputError(f"{where} is longer than {MAX_LINE} characters; expected one sample per line")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also covers numbers of thousands of digits
        raise InputError(f"{where} is not JSON; expected an object per line") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is no object; expected input names with lists of numbers")
    return row


def _parquet_rows(path: Path, parquet: Any) -> Iterator[Mapping[str, Any]]:
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except Exception as error:  # pyarrow's errors have no common base
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path.name}: not a readable parquet file ({reason})") from error


def _samples(rows: Iterator[Mapping[str, Any]], specs: list[InputSpec], where: str) -> Iterator[Sample]:
    wanted = {spec.name for spec in specs}
    for index, row in enumerate(rows):
        found = set(row) - ({LABEL} - wanted)
        if found != wanted:
            listed = ", ".join(sorted(found)) or "nothing"
            expected = ", ".join(sorted(wanted))
            raise InputError(f"{where}: sample {index} holds {listed}; the model's inputs are {expected}")
        label = None if LABEL in wanted else row.get(LABEL)
        if label is not None and type(label) is not int:  # True is an int to isinstance
            raise InputError(f"{where}: label of sample {index} is {label!r:.80}; expected a class number")
        yield Sample({spec.name: _tokens(row[spec.name], spec, index, where) for spec in specs}, label)


def _tokens(values: Any, spec: InputSpec, index: int, where: str) -> NDArray[Any]:
    """Return a list of numbers as an array [1, length] of the input's type, which JSON does not carry."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{where}: {spec.name} of sample {index} is ragged; expected a flat list") from error
    if array.shape == (0,):
        raise InputError(f"{where}: {spec.name} of sample {index} is empty; expected at least one value")
    whole = array.dtype.kind in "iub" or spec.dtype.kind not in "iub"
    if array.ndim != 1 or array.dtype.kind not in "iufb" or not whole:
        raise InputError(f"{where}: {spec.name} of sample {index} is no flat list of numbers for {spec.dtype}")
    _require_range(array, spec, f"{where}: {spec.name} of sample {index}")
    with np.errstate(over="ignore"):  # what overflows a float becomes infinite, and that is refused by name
        return array.astype(spec.dtype)[None]


def _require_range(array: NDArray[Any], spec: InputSpec, what: str) -> None:
    """Refuse integers that do not fit the input's type: they would wrap around without a word."""
    if spec.dtype.kind not in "iub":
        return
    low, high = (0, 1) if spec.dtype.kind == "b" else (np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max)
    least, most = int(array.min()), int(array.max())
    if least < low or most > high:
        raise InputError(f"{what} holds {least if least < low else most}; {spec.dtype} takes {low} to {high}")
