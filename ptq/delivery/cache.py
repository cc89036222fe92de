"""Cache of finished models by the hash of all that they depend on: an unchanged build costs a moment.

Imports little: most of a hit's time would be the loading of libraries that it does not need.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ptq.core.archive import freeze, thaw
from ptq.core.errors import InputError
from ptq.files.whole import write_whole

MADE_WITH = ("onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow", "pyarrow")
SUFFIX = ".ptq"
MOST_BYTES = 4 * 2**30
"""Size beyond which the entries go that were not used for longest."""

BLOCK = 1 << 22


@dataclass(frozen=True)
class Entry:
    """A finished run, as the cache keeps it.

    Attributes:
        products: Suffix of the output's path -> contents, the model's is empty.
        beside: Files beside the input model that hold its weights -> SHA-256.
    """

    products: Mapping[str, bytes]
    beside: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write the model to a path."""
        path.write_bytes(self.products[""])

    def fits(self, folder: Path) -> bool:
        """Whether the weights beside the input model are still the same."""
        return all(_hash_if_there(folder / name) == digest for name, digest in self.beside.items())

    def is_at(self, output: Path) -> bool:
        """Whether these very products lie at a path already."""
        with suppress(OSError):
            return all(
                output.with_name(output.name + suffix).read_bytes() == contents
                for suffix, contents in self.products.items()
            )
        return False


@dataclass(frozen=True)
class Cache:
    """A folder of finished runs.

    Attributes:
        folder: Made when it is missing.
    """

    folder: Path

    def key(self, settings: Mapping[str, Any], files: Iterable[Path]) -> str:
        """Compute the hash of all that decides a result.

        Args:
            settings: Options as they were given.
            files: Files and folders of files that are read.

        Raises:
            InputError: One cannot be read.
        """
        digest = hashlib.sha256(json.dumps([settings, self._here], sort_keys=True, default=str).encode())
        for path in files:
            _add(digest, path)
        return digest.hexdigest()

    def find(self, key: str) -> Entry | None:
        """Return what a run with that key has made; None if there is nothing, or nothing whole."""
        path = self.folder / f"{key}{SUFFIX}"
        try:
            entry = thaw(path.read_bytes())
            products = {suffix: array.tobytes() for suffix, array in entry["products"].items()}
            if entry["digests"] != {suffix: _hash(contents) for suffix, contents in products.items()}:
                return None
            os.utime(path)
            return Entry(products, entry["beside"])
        except (InputError, OSError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, key: str, products: Mapping[str, bytes], beside: Mapping[str, Path]) -> None:
        """Keep a finished run; the oldest go where there are too many.

        Args:
            key: What it depends on.
            products: See `Entry`.
            beside: Files beside the input model that hold its weights, by their paths from there.

        Raises:
            InputError: The folder cannot be written.
        """
        self.make()
        entry = {
            "products": {suffix: np.frombuffer(contents, np.uint8) for suffix, contents in products.items()},
            "digests": {suffix: _hash(contents) for suffix, contents in products.items()},
            "beside": {name: _hash_if_there(path) for name, path in beside.items()},
        }
        write_whole(self.folder / f"{key}{SUFFIX}", freeze(entry))
        self._shrink()

    def make(self) -> None:
        """Make the folder, to find out early whether it can be written.

        Raises:
            InputError: It cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--cache {self.folder}: {error.strerror or error}; give a folder") from error

    def _shrink(self) -> None:
        entries = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in entries:
            total += path.stat().st_size
            if total > MOST_BYTES and time.time() > path.stat().st_mtime + 1:
                path.unlink(missing_ok=True)

    @cached_property
    def _here(self) -> dict[str, str]:
        """Versions and hashes of what else a result depends on: our own sources, the libraries, the kind of machine."""
        sources = hashlib.sha256()
        for path in sorted(source for folder in _sources() for source in folder.rglob("*.py")):
            sources.update(path.read_bytes())
        parts = {"ptq": sources.hexdigest(), "machine": platform.machine(), "processor": _processor()}
        for name in MADE_WITH:
            with suppress(ImportError):  # an extra that is not installed
                parts[name] = version(name)
        return parts


def _sources() -> list[Path]:
    """List the folders of our own code."""
    folders = [Path(__file__).parents[1]]
    for name in ("ptq.passes", "ptq.calibration", "ptq.runtime"):
        spec = find_spec(name)
        folders += [] if spec is None else map(Path, spec.submodule_search_locations or ())
    return folders


def _processor() -> str:
    """Return the kind of processor: sums of floats come out differently on different kinds."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor()


def _add(digest: Any, path: Path) -> None:
    """Update a hash with a file, or a folder and all that is in it."""
    try:
        if path.is_dir():
            for entry in sorted(each for each in path.rglob("*") if each.is_file()):
                digest.update(f"{entry.relative_to(path)};".encode(errors="surrogateescape"))
                digest.update(bytes.fromhex(_hash_of_file(entry)))
        else:
            digest.update(bytes.fromhex(_hash_of_file(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}; check the path") from error


def _hash_of_file(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; check the path")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hash_if_there(path: Path) -> str:
    with suppress(OSError, InputError):
        return _hash_of_file(path)
    return ""


def _hash(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()
