"""Progress of a run: a callable hears the name of each step, and numbers too if it can count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

Progress = Callable[[str], None]
"""Called with the name of each step as it starts. One that `Counts` also hears how far the step is."""


@runtime_checkable
class Counts(Protocol):
    """A `Progress` that also hears how far each step is."""

    def __call__(self, step: str) -> None:
        """Hear that a step begins."""
        ...

    def advance(self, done: int, total: int | None) -> None:
        """Hear how many samples or layers of the step are done, of how many; `total` is None if nobody knows."""
        ...


@runtime_checkable
class Notes(Protocol):
    """A `Progress` that also hears what a user should know while the run goes on."""

    def __call__(self, step: str) -> None:
        """Hear that a step begins."""
        ...

    def note(self, text: str) -> None:
        """Hear what a user should know, in a line."""
        ...


def noted(progress: Progress, text: str) -> None:
    """Tell a progress a line, if it takes any."""
    if isinstance(progress, Notes):
        progress.note(text)


def silent(_step: str) -> None:
    """Ignore the progress of a run."""


def within(progress: Progress, name: str) -> Progress:
    """Return a progress for a part of something longer, whose name is put before that of each step."""
    return _Within(progress, name) if isinstance(progress, Counts) else lambda step: progress(f"{name}: {step}")


class _Within:
    def __init__(self, progress: Counts, name: str) -> None:
        self._progress, self._name = progress, name

    def __call__(self, step: str) -> None:
        self._progress(f"{self._name}: {step}")

    def advance(self, done: int, total: int | None) -> None:
        self._progress.advance(done, total)

    def note(self, text: str) -> None:
        noted(self._progress, text)


def counted(items: Iterable[T], total: int | None, progress: Progress) -> Iterable[T]:
    """Return the items, each reported once the next one is asked for; the very items if nobody counts."""
    return _counted(items, total, progress) if isinstance(progress, Counts) else items


def _counted(items: Iterable[T], total: int | None, progress: Counts) -> Iterator[T]:
    for done, item in enumerate(items, 1):
        yield item
        progress.advance(done, total)
