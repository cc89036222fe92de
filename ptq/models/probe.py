"""Probe of a model in a process of its own before it runs in this one: onnxruntime may crash, and only the probe ends.

What it merely refuses is told by the run that follows.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from ptq.models.sessions import RunError, run, session_of
from ptq.runtime.opening import Optimization

SECONDS = 300.0
"""Longest that a sample may take, optimized and as the graph is written."""

LEVELS: tuple[Optimization, ...] = ("all", "none")


def require_survivable(
    model: str | Path | bytes, feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()
) -> None:
    """Refuse a model on which onnxruntime crashes or hangs.

    On Linux, and from the main thread: a fork, which takes milliseconds, is unsafe elsewhere. The child computes, with
    sessions of its own, and shares no lock with threads that show progress.

    Args:
        model: As `session_of`.
        feed: One sample.
        custom_ops: Libraries the model needs.

    Raises:
        RunError: The process did not live through it.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return
    ended, held = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it means threads; those of BLAS know about forks
        child = os.fork()
    if not child:
        _try(model, feed, custom_ops)
    os.close(held)
    try:
        late = not select.select([ended], [], [], SECONDS)[0]  # readable when the other end closes
    finally:
        os.close(ended)
        os.kill(child, signal.SIGKILL)  # without effect on a process that has ended
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late:
        raise RunError(
            f"onnxruntime takes more than {SECONDS:g} s for one sample; use a smaller one, or export it again"
        )
    if code < 0:
        place, more = (" or in an operator library", ", or build the library again") if custom_ops else ("", "")
        name = signal.Signals(-code).name
        raise RunError(f"onnxruntime crashes on the model{place} ({name}); export it in another way{more}")


def _try(model: str | Path | bytes, feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path]) -> NoReturn:
    import faulthandler
    import resource

    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        for level in LEVELS:
            with session_of(model, custom_ops=custom_ops, optimization=level, fixed_draws=False) as session:
                run(session, dict(feed))
    finally:
        os._exit(0)
