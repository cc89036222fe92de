"""Temporary files that say whose they are, so that those of a killed run can be told from those in use."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def owned(name: str) -> str:
    """Beginning of a temporary name: what it is for, machine and process."""
    return f"{name[:80]}{HOST}-{os.getpid()}-"


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for files that no user sees, gone when the context ends."""
    return tempfile.TemporaryDirectory(prefix=owned("ptq-"))


def clear(folder: Path, name: str) -> None:
    """Remove what processes that are no more have left in a folder, as far as it can be removed."""
    pattern = re.compile(re.escape(name[:80] + HOST) + r"-(\d+)-")
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        found = pattern.match(entry.name)
        if found is None or _is_alive(int(found.group(1))):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            try:
                entry.unlink(missing_ok=True)
            except OSError:
                continue


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
