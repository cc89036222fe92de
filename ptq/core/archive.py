"""Values of the house as bytes and back: dataclasses, numbers, texts and arrays, never code.

The bytes are a safetensors file: arrays as they lie in memory, and one text that says how they belong together. Equal
values give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ptq.core.errors import InputError

TREE = "tree"
DEEPEST = 32


def freeze(value: object) -> bytes:
    """Write a value as bytes.

    Args:
        value: A dataclass, mapping, tuple, list, array, number, text or None; nested at will.

    Raises:
        TypeError: Something else is in it.

    Example:
        >>> thaw(freeze({"a": (1, 2.5), "b": np.arange(2)}))
        {'a': (1, 2.5), 'b': array([0, 1])}
    """
    arrays: dict[str, NDArray[Any]] = {}
    tree = _flat(value, arrays)
    return bytes(save(arrays, {TREE: json.dumps(tree, sort_keys=True)}))


def thaw(data: bytes, kinds: tuple[type, ...] = ()) -> Any:
    """Read a value from bytes.

    Args:
        data: What `freeze` gave.
        kinds: Dataclasses that may be in it; no others are made.

    Raises:
        InputError: The bytes are damaged, or hold something else.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        tree = json.loads(header["__metadata__"][TREE])
        return _Reader(load(data), {kind.__name__: kind for kind in kinds}).read(tree, 0)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"damaged, or written by something else ({type(error).__name__}: {reason})") from error


def _flat(value: object, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return the value as JSON knows it, its arrays put aside in `arrays`."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _flat(getattr(value, field.name), arrays) for field in fields(value)}
        return {"kind": type(value).__name__, "fields": parts}
    if isinstance(value, np.ndarray | np.generic):
        name = f"{len(arrays):06d}"
        array = np.asarray(value)
        arrays[name] = array if array.ndim and array.flags.c_contiguous else np.array(array, order="C", ndmin=1)
        return {"array": name, "shape": list(array.shape)}
    if isinstance(value, Mapping):
        return {"map": [[_flat(key, arrays), _flat(each, arrays)] for key, each in value.items()]}
    if isinstance(value, tuple | list):
        return {"tuple": [_flat(each, arrays) for each in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be kept in a file")


class _Reader:
    def __init__(self, arrays: dict[str, NDArray[Any]], kinds: dict[str, type]) -> None:
        self._arrays, self._kinds = arrays, kinds

    def read(self, tree: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if not isinstance(tree, dict):
            return tree
        if "kind" in tree:
            return self._kinds[tree["kind"]](
                **{name: self.read(each, depth + 1) for name, each in tree["fields"].items()}
            )
        if "array" in tree:
            return self._arrays[tree["array"]].reshape(tree["shape"])
        if "map" in tree:
            return {self.read(key, depth + 1): self.read(each, depth + 1) for key, each in tree["map"]}
        return tuple(self.read(each, depth + 1) for each in tree["tuple"])
