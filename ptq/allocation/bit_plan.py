"""Bit plans: word lengths of layers, and of single output features where these differ, as an allocator decides them.

A plan lies beside a recipe as JSON, each layer with a word length, one for every output feature, or the word float:

    {"layers": {"conv1": 8, "conv2": [4, 4, 6], "head": "float"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq.core.errors import InputError, RecipeError
from ptq.files.whole import read_regular_file, write_whole
from ptq.sensitivity.table import FLOAT

LayerBits = int | tuple[int, ...]
"""Bits of all weights of a layer, `FLOAT` if it stays float, or bits of the weights of each output feature."""

SHORTEST, LONGEST = 2, 8
IN_FLOAT = "float"
EXPECTED = f"expected {SHORTEST} to {LONGEST}, a list of them with one for each output feature, or {IN_FLOAT}"

MAX_BYTES = 2**26
"""Largest file of a plan."""


@dataclass(frozen=True)
class BitPlan:
    """Word lengths by layer.

    Attributes:
        layers: Layer -> bits, 2 to 8 each. Layers that are not in it are left to whoever applies the plan.

    Raises:
        RecipeError: A layer has other bits.

    Example:
        >>> BitPlan({"conv1": 8, "conv2": (4, 6), "head": FLOAT}).to_table()
        {'layers': {'conv1': 8, 'conv2': [4, 6], 'head': 'float'}}
    """

    layers: Mapping[str, LayerBits] = field(hash=False)

    def __post_init__(self) -> None:
        for name, bits in self.layers.items():
            words = bits if isinstance(bits, tuple) else (() if bits == FLOAT else (bits,))
            if bits == () or any(type(word) is not int or not SHORTEST <= word <= LONGEST for word in words):
                raise RecipeError(f"layer {name!r:.80} has bits {_bits_to(bits)!r:.80}; {EXPECTED}")

    @property
    def floats(self) -> tuple[str, ...]:
        """Layers that stay float."""
        return tuple(name for name, bits in self.layers.items() if bits == FLOAT)

    @property
    def has_rows(self) -> bool:
        """Whether output features of one layer have bits of their own."""
        return any(isinstance(bits, tuple) for bits in self.layers.values())

    @property
    def has_small_weights(self) -> bool:
        """Whether any weight is shorter than a byte."""
        return any(shortest_of(bits) < LONGEST for bits in self.layers.values())

    @staticmethod
    def from_table(table: object) -> BitPlan:
        """Read a plan from the table that JSON or TOML makes of it.

        Raises:
            RecipeError: It is something else; names the layer.
        """
        if not isinstance(table, dict) or not isinstance(table.get("layers"), dict):
            raise RecipeError(f"expected a table `layers` with the bits of each layer, found {table!r:.80}")
        if unknown := set(table) - {"layers"}:
            raise RecipeError(f"key {min(unknown)!r:.80} is unknown; expected `layers` alone")
        return BitPlan({name: _bits_from(name, each) for name, each in table["layers"].items()})

    def to_table(self) -> dict[str, Any]:
        """Return the plan as `from_table` reads it."""
        return {"layers": {name: _bits_to(bits) for name, bits in self.layers.items()}}

    @staticmethod
    def load(path: str | Path) -> BitPlan:
        """Read a plan's file.

        Args:
            path: From the working directory, if it does not start at the root.

        Raises:
            RecipeError: It is missing, no JSON, or no plan; names file and layer.
        """
        try:
            data = read_regular_file(Path(path), MAX_BYTES, "a bit plan", "leave out layers that it need not name")
        except InputError as error:
            raise RecipeError(f"cannot read the bit plan: {error}") from error
        except ValueError as error:  # a path with a byte that no path has
            raise RecipeError(f"cannot read the bit plan {str(path)!r:.200}: {error}") from error
        try:
            return BitPlan.from_table(json.loads(data, object_pairs_hook=_without_twins))
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:  # those of JSON and of Unicode are ValueErrors
            raise RecipeError(f"{path}: not JSON: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan, a line per layer.

        Raises:
            InputError: The file cannot be written.
        """
        lines = [f"    {json.dumps(name)}: {json.dumps(_bits_to(bits))}" for name, bits in self.layers.items()]
        write_whole(Path(path), ('{\n  "layers": {\n' + ",\n".join(lines) + "\n  }\n}\n").encode())


def shortest_of(bits: LayerBits) -> int:
    """Return the shortest word of a layer, bits."""
    return min(bits) if isinstance(bits, tuple) else bits


def _bits_from(name: str, value: object) -> LayerBits:
    if value == IN_FLOAT:
        return FLOAT
    bits: object = tuple(value) if isinstance(value, list) else value
    if isinstance(bits, tuple) or (type(bits) is int and bits != FLOAT):
        return bits
    raise RecipeError(f"layer {name!r:.80} has bits {value!r:.80}; {EXPECTED}")


def _bits_to(bits: LayerBits) -> int | list[int] | str:
    return IN_FLOAT if bits == FLOAT else list(bits) if isinstance(bits, tuple) else bits


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, and refuse one that names a layer twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise RecipeError(f"{next(name for name in names if names.count(name) > 1)!r:.80} is there twice")
    return table
