"""Whole files in and out, guarded: nothing that blocks or exhausts memory is read, nothing half is ever written."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from ptq.core.errors import InputError
from ptq.files.scratch import clear, owned


def read_regular_file(path: Path, limit: int, what: str, remedy: str) -> bytes:
    """Read a whole file, refusing anything that could block or exhaust memory.

    Args:
        path: The file.
        limit: Most bytes.
        what: It should hold, for messages.
        remedy: What to do about a file that is too large.

    Raises:
        InputError: Missing, not a regular file, empty, larger than `limit` bytes, or not readable.
    """
    try:
        path.stat()
    except OSError as error:
        raise InputError(f"{str(path)[:300]}: no such file ({error.strerror}); check the path") from error
    if not path.is_file():
        raise InputError(f"{path}: expected a regular file, found a {'folder' if path.is_dir() else 'device or pipe'}")
    size = path.stat().st_size
    if size > limit:
        raise InputError(f"{path}: {size} bytes; {what} holds at most {limit}, {remedy}")
    if size == 0:
        raise InputError(f"{path}: the file is empty; expected {what}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file: whatever happens, the older one is there or the new one.

    Raises:
        InputError: It cannot be written; the older one is untouched.
    """
    hidden = f".{path.name[:60]}."
    try:
        clear(path.parent, hidden)
        temporary = path.with_name(f"{owned(hidden)}{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {str(path)[:300]}: {error.strerror or error}") from error
