"""Settings of glibc's heap, by which freed memory goes back to the system.

They are for a process that is nothing but a run; a trim is for any.

glibc gives every thread a heap of its own, keeps what is freed in them, and raises the size from which an array is a
mapping of its own whenever one is freed: a run then holds what its steps needed one after the other, all at once.
"""

from __future__ import annotations

import ctypes
import os
import sys

ARENA_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -3, -1
"""Numbers of glibc's <malloc.h>."""

ARENAS = 1
"""Heaps of all threads together: they wait for each other less than numpy's work takes."""

LARGE = 8 * 2**20
"""Bytes from which an array is a mapping of its own, which is gone when it is freed; small ones would cost time."""

KEPT = 16 * 2**20
"""Freed bytes at the end of a heap that are kept."""


def give_back_memory() -> None:
    """Let glibc return freed memory; nothing happens with other C libraries, or where the user has set it up."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in ((ARENA_MAX, ARENAS), (MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, KEPT)):
            mallopt(setting, value)


def trim() -> None:
    """Give back what is free between pieces that are not, as after messages; it takes milliseconds."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)
