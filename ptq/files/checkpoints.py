"""Checkpoints that an interrupted run goes on from: values in a folder, each under a hash of all it depends on.

A changed model, recipe or version never meets an old value, as its hash is another. Nothing here is needed: what
cannot be read or written is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ptq.core.archive import freeze, thaw
from ptq.core.errors import InputError
from ptq.files.whole import write_whole

T = TypeVar("T")

SUFFIX = ".kept"
SAVE_SECONDS = 5.0
"""How much work an interruption may cost, roughly."""


class Checkpoints:
    """A store of values of a run that may be interrupted; written seldom, so that short runs write nothing.

    Args:
        folder: Where they go; made when there is something to keep. None for nowhere.
        base: All that the whole run depends on, as a hash: values follow from it and from their names.
    """

    def __init__(self, folder: Path | None = None, base: str = "") -> None:
        self._folder, self._base = folder, base
        self._waiting: dict[Path, object] = {}
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self._folder is not None and time.monotonic() > self._saved + SAVE_SECONDS

    def restore(self, name: str, kinds: tuple[type, ...]) -> object:
        """Return a value that an earlier run kept; None if there is none, or its file was cut short.

        Args:
            name: Of the value.
            kinds: Dataclasses that may be in it.
        """
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            return thaw(path.read_bytes(), kinds)
        except (InputError, OSError):
            path.unlink(missing_ok=True)
            return None

    def keep(self, name: str, value: object) -> None:
        """Keep a value; it is written, with others that wait, as soon as it is time."""
        path = self._path(name)
        if path is not None:
            self._waiting[path] = value
        if self.due:
            self.write()

    def restore_or_solve(self, name: str, kind: type[T], parts: tuple[type, ...], solve: Callable[[], T]) -> T:
        """Return a value as an interrupted run kept it, or else solve it now and keep it.

        Args:
            name: Of the value.
            kind: Its class.
            parts: Other dataclasses that may be in it.
            solve: Makes it.
        """
        found = self.restore(name, (kind, *parts))
        if isinstance(found, kind):
            return found
        solved = solve()
        self.keep(name, solved)
        return solved

    def write(self) -> None:
        """Write all values that wait."""
        for path, value in self._waiting.items():
            with suppress(InputError, OSError):
                path.parent.mkdir(exist_ok=True)
                write_whole(path, freeze(value))
        self._waiting.clear()
        self._saved = time.monotonic()

    def drop(self, name: str) -> None:
        """Forget a value that was written."""
        path = self._path(name)
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path | None:
        key = checkpoint_key(self._base, name)
        return None if self._folder is None else self._folder / f"{key}{SUFFIX}"


def checkpoint_key(*parts: object) -> str:
    """Compute the hash of what a value depends on.

    Args:
        parts: Whatever JSON can write, and bytes in some form.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes | memoryview) else json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()
