"""How far a step is. Whoever asks is called with the names of steps; if it can count, also with numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

Progress = Callable[[str], None]
"""Called with the name of each step as it starts. One that `Counts` also hears how far the step is."""


@runtime_checkable
class Counts(Protocol):
    """A `Progress` that wants numbers too."""

    def __call__(self, step: str) -> None:
        """A step starts."""
        ...

    def advance(self, done: int, total: int | None) -> None:
        """So many of its samples or layers are done; None where nobody knows of how many."""
        ...


def silent(_step: str) -> None:
    """Tell nobody."""


def within(progress: Progress, name: str) -> Progress:
    """The same progress for a part of something longer, whose name stands before that of each step."""
    return _Within(progress, name) if isinstance(progress, Counts) else lambda step: progress(f"{name}: {step}")


class _Within:
    def __init__(self, progress: Counts, name: str) -> None:
        self._progress, self._name = progress, name

    def __call__(self, step: str) -> None:
        self._progress(f"{self._name}: {step}")

    def advance(self, done: int, total: int | None) -> None:
        self._progress.advance(done, total)


def counted(items: Iterable[T], total: int | None, progress: Progress) -> Iterable[T]:
    """The same items, each reported once the next one is asked for; untouched if nobody counts."""
    return _counted(items, total, progress) if isinstance(progress, Counts) else items


def _counted(items: Iterable[T], total: int | None, progress: Counts) -> Iterator[T]:
    for done, item in enumerate(items, 1):
        yield item
        progress.advance(done, total)
