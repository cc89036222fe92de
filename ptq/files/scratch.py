"""Temporary files that say whose they are, so that those of a killed run can be told from those in use."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def owned(name: str) -> str:
    """Return the beginning of a temporary name: what it is for, machine and process."""
    return f"{name[:80]}{HOST}-{os.getpid()}-"


@contextmanager
def signals_later() -> Iterator[None]:
    """Keep interrupts until the context ends.

    Handlers are exchanged: a signal that the main thread blocks would reach another one, and be handled in this one.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler ever runs here
        yield
        return
    came: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in kept:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


class Scratch(tempfile.TemporaryDirectory[str]):
    """A folder that is gone when the context ends, whenever a signal comes: it is made and removed as a whole.

    Args:
        prefix: Beginning of its name.
        suffix: End of its name.
        folder: Where it is made; None is the system's place for such.
    """

    def __init__(self, prefix: str, suffix: str = "", folder: Path | None = None) -> None:
        try:
            with signals_later():
                super().__init__(suffix, prefix, folder)
        except BaseException:
            if hasattr(self, "name"):  # made, and then the signal that had come meanwhile
                self.cleanup()
            raise

    def cleanup(self) -> None:
        """Remove the folder and all in it."""
        with signals_later():
            super().cleanup()


def scratch_folder() -> Scratch:
    """Make a folder for files that no user sees, gone when the context ends."""
    return Scratch(owned("ptq-"))


def clear(folder: Path, name: str) -> None:
    """Remove what processes that have ended left in a folder, as far as it can be removed."""
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
