"""Progress as one line of text: which step runs, how far it is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from ptq.core.printable import printable

STEPS = {
    "measure": "timing layers in float and as integers",
    "compare": "comparing layer by layer",
    "prepare": "preparing the float graph",
    "squeeze": "looking for channels that carry nothing",
    "prune": "taking out channels that cost little",
    "equalize": "evening out channels",
    "calibrate": "running the calibration set",
    "solve": "choosing ranges and weights",
    "lower": "writing integers",
    "verify": "running both models side by side",
    "inspect": "looking at the model",
    "bench": "timing the models",
}

OFTEN_SECONDS = 0.1
"""Time between two updates: showing costs more than counting."""

ESTIMATED_AFTER = 1.0
"""Seconds of a step before its end is guessed."""


class Steps:
    """A `Progress` that counts, and puts counts into words.

    Args:
        show: Takes each new line.
        say: Takes lines that stay.
        clock: Seconds.
    """

    def __init__(
        self,
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._show, self._clock, self._say = show, clock, say
        self._words, self._start, self._shown, self._done = "", clock(), clock(), 0

    def __call__(self, step: str) -> None:
        """Show that a step begins."""
        self._words, self._start, self._done = printable(_in_words(step)), self._clock(), 0
        self._show(self._words)

    def note(self, text: str) -> None:
        """Say a line that stays."""
        self._say(printable(text))

    def advance(self, done: int, total: int | None) -> None:
        """Show how many samples or layers of the step are done, and the time left; seldom, as showing takes time."""
        now = self._clock()
        if done < self._done:  # another pass over the same
            self._start = now
        self._done = done
        if now - self._shown < OFTEN_SECONDS:
            return
        self._shown = now
        of = "" if total is None else f" of {total}"
        spent = now - self._start
        left = "" if total is None or spent < ESTIMATED_AFTER else f", {_time(spent / done * (total - done))} left"
        self._show(f"{self._words}: {done}{of}{left}")


def _time(seconds: float) -> str:
    """Write a time in the unit that a person would take."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _in_words(step: str) -> str:
    """Return the words for a step; a part of something longer comes after a colon."""
    before, colon, last = step.rpartition(": ")
    return before + colon + STEPS.get(last, last)
