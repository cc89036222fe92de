"""Temporary folders that go, whenever a signal comes, and whichever thread it reaches."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptq.delivery.deliver import alone_in
from ptq.files.scratch import Scratch, signals_later


class StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _stopped_by_sigterm() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    yield
    assert signal.signal(signal.SIGTERM, before) is stop


@pytest.fixture
def _other_thread() -> Iterator[None]:
    """One that takes the signals of the process, as those of numerical libraries do."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def test_a_signal_while_the_folder_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make = tempfile.mkdtemp

    def interrupted(*arguments: Any) -> str:
        name = make(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return name

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with pytest.raises(StoppedError):
        Scratch("a", ".tmp", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_folder_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remove = os.unlink

    def interrupted(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(*arguments, **options)

    folder = Scratch("a", ".tmp", tmp_path)
    for number in range(3):
        (Path(folder.name) / str(number)).touch()
    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(StoppedError):
        folder.cleanup()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_other_thread")
def test_what_must_not_be_interrupted_is_not(tmp_path: Path) -> None:
    done: list[int] = []

    def work() -> None:
        with alone_in(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            done.extend(sum(range(1000)) for _ in range(1000))

    with pytest.raises(StoppedError):
        work()
    assert len(done) == 1000


def test_other_threads_leave_handlers_alone() -> None:
    found: list[Any] = []

    def look() -> None:
        with signals_later():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
