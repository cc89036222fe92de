"""Bundle of a model for another machine: with inputs, and the outputs that it has to give there."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.errors import InputError
from ptq.files.scratch import Scratch
from ptq.models.draws import fixed_form
from ptq.models.source import fingerprint

Arrays = Mapping[str, NDArray[Any]]
FILES = Path(__file__).with_name("files")
MANIFEST = "ptq-export.json"
MODEL = "model.onnx"
CHECK = "check.onnx"
"""A model that draws random numbers, with fixed draws in their place: two machines can be compared by it."""


@dataclass(frozen=True)
class Example:
    """One sample with the outputs that belong to it.

    Attributes:
        inputs: Name -> array, as the model takes it.
        outputs: Name -> what onnxruntime gave for it here, with standard operators and fixed draws.
        label: Its class, if known.
    """

    inputs: Arrays
    outputs: Arrays
    label: int | None


@dataclass(frozen=True)
class Bundle:
    """A model and its examples, which an exporter works on.

    Attributes:
        model: Path of the model.
        examples: Samples to check the other machine with; at least one.
        float_model: The model before quantization, to be shown beside it.
    """

    model: Path
    examples: Sequence[Example]
    float_model: Path | None = None

    def put_model(self, folder: Path) -> str:
        """Copy the model, and the files of weights beside it.

        Returns:
            Name of the file that a check runs: the model itself, or its form with fixed draws.
        """
        shutil.copyfile(self.model, folder / MODEL)
        for name in external_files(self.model):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.model.parent / name, folder / name)
        return CHECK if put_fixed(self.model, folder / CHECK) else MODEL

    def put_check(self, folder: Path) -> None:
        """Write inputs, expected outputs, and the script that compares."""
        first = self.examples[0]
        for name, arrays in (("inputs.npz", first.inputs), ("expected.npz", first.outputs)):
            _write_npz(folder / name, arrays)
        put_files(folder, "run.py")


def put_fixed(model: Path, path: Path) -> bool:
    """Write a model with fixed draws, if it draws, and say whether it does."""
    fixed = fixed_form(model)
    if isinstance(fixed, ir.Model):
        ir.save(fixed, path)
    return isinstance(fixed, ir.Model)


def _write_npz(path: Path, arrays: Arrays) -> None:
    """Write arrays as numpy.savez does; that takes names as keywords, and models may call an input `file`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                plain = array.astype(str) if array.dtype.hasobject else np.asanyarray(array)  # objects are texts
                np.lib.format.write_array(entry, plain, allow_pickle=False)


def put_files(folder: Path, *names: str) -> None:
    """Copy files that are the same for every model."""
    for name in names:
        shutil.copyfile(FILES / name, folder / name)


def external_files(model: Path) -> tuple[str, ...]:
    """List the files beside a model that hold its weights."""
    values = ir.load(model).graph.initializers.values()
    tensors = [value.const_value for value in values if isinstance(value.const_value, ir.ExternalTensor)]
    return tuple(sorted({str(tensor.location) for tensor in tensors}))


def deliver(made: Path, folder: Path, model: Path, target: str) -> tuple[Path, ...]:
    """Put a finished folder in its place: whole, or not at all.

    Args:
        made: The finished folder, beside where it goes.
        folder: Where it goes.
        model: What was exported.
        target: Where to.

    Returns:
        Paths of the files.

    Raises:
        InputError: The folder cannot be written.
    """
    names = sorted(path.name for path in made.iterdir())
    manifest = {"model": model.name, "sha256": fingerprint(model.read_bytes()), "target": target, "files": names}
    (made / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    made.chmod(0o755)
    try:
        with Scratch(f".{folder.name[:80]}.", ".tmp", folder.parent) as name:
            _swap(made, folder, Path(name) / "old")
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    return tuple(folder / name for name in names)


def _swap(made: Path, folder: Path, old: Path) -> None:
    """Put `made` where `folder` is, or leave that as it was."""
    if not folder.exists():
        made.rename(folder)
        return
    folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def require_free(folder: Path) -> None:
    """Find out before the work starts whether a folder may be written.

    Raises:
        InputError: It is a file, holds something that no export wrote, or its parent is missing.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"cannot write {folder}: it is a file or a link; give a folder")
    if not folder.parent.is_dir():
        raise InputError(f"cannot write {folder}: no such folder {folder.parent}; create it first")
    others = sorted(_strangers(folder)) if folder.is_dir() else []
    if others:
        raise InputError(
            f"cannot write {folder}: it holds other files ({others[0]}); remove them, or give a new or empty folder"
        )


def _strangers(folder: Path) -> set[str]:
    """List what is in a folder that no export of ours put there: it would be lost."""
    manifest = folder / MANIFEST
    names = {path.name for path in folder.iterdir()}
    if not manifest.is_file():
        return names
    try:
        ours = set(json.loads(manifest.read_text())["files"])
    except (ValueError, KeyError, TypeError):
        return names
    return names - ours - {MANIFEST}
