"""Models for other machines: one file per kind of machine, each a frozen dataclass with the verb `export`."""

from __future__ import annotations

from pathlib import Path

from ptq.core.errors import InputError
from ptq.exporters.arm64 import Arm64
from ptq.exporters.bundle import Bundle, Example, deliver, require_free
from ptq.exporters.native import Native
from ptq.exporters.ort_mobile import OrtMobile
from ptq.exporters.web import Web
from ptq.files.scratch import Scratch

Exporter = OrtMobile | Web | Arm64 | Native
EXPORTERS: dict[str, Exporter] = {"ort-mobile": OrtMobile(), "web": Web(), "arm64": Arm64(), "native": Native()}

__all__ = ["EXPORTERS", "Bundle", "Example", "Exporter", "export_bundle", "require_free"]


def export_bundle(bundle: Bundle, target: str, folder: Path) -> tuple[Path, ...]:
    """Write everything that another machine needs into a folder.

    Args:
        bundle: The model and its examples.
        target: Key of `EXPORTERS`.
        folder: New, empty, or of an earlier export.

    Returns:
        Paths of the files.

    Raises:
        PtqError: The folder cannot be written, or the target cannot take the model. Nothing is left behind.
    """
    require_free(folder)
    try:
        with Scratch(f".{folder.name[:80]}.", ".tmp", folder.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            EXPORTERS[target].export(bundle, made)
            return deliver(made, folder, bundle.model, target)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
