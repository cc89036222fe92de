"""The operator library: where it is, and whether it helps on this machine."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

NAME = "_ptqops.so"
SOURCES = Path(__file__).with_name("cpp")
"""Folder of the library's sources, for other processors."""

OVERRIDE = "PTQ_NATIVE_LIBRARY"
"""Environment variable with the path of the library; empty for none."""


@functools.cache
def native_path() -> Path | None:
    """Return the path of the library; None if it was not built or has no kernels for this processor.

    Models run without it; the operators that it would replace carry a body of standard ones.
    """
    path = _find()
    try:
        return path if path is not None and kernels(path) else None
    except (OSError, AttributeError):  # no library, or another one
        return None


def native_status() -> str:
    """Say in one line which kernels run, or why none."""
    why = native_lack()
    return (
        f"no operator library: {why}; standard operators run" if why else f"{native_kernels()} kernels from {_find()}"
    )


def native_lack() -> str:
    """Return the reason why no operator library is used; empty if one is."""
    path = _find()
    if path is None and OVERRIDE in os.environ:
        return f"{OVERRIDE} is empty"
    if path is None:
        return f"it was not built at installation, which takes a C++ compiler, and {OVERRIDE} names none"
    try:
        return "" if kernels(path) else f"{path} has no kernels for this processor"
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error})"


def native_kernels() -> str:
    """Return the instruction set of the library's kernels on this machine; empty if it is not usable."""
    path = native_path()
    return "" if path is None else kernels(path)


def kernels(path: Path) -> str:
    """Return the instruction set that a library would use here; empty if none.

    Raises:
        OSError: The file cannot be loaded as a library.
        AttributeError: It is another library.
    """
    ask = ctypes.CDLL(str(path)).ptq_kernels
    ask.restype = ctypes.c_char_p
    found: bytes = ask()
    return found.decode()


def _find() -> Path | None:
    if OVERRIDE in os.environ:
        return Path(os.environ[OVERRIDE]) if os.environ[OVERRIDE] else None
    beside = [Path(__file__).with_name(NAME), *(Path(folder) / "ptq/runtime" / NAME for folder in sys.path)]
    return next((path for path in beside if path.is_file()), None)
