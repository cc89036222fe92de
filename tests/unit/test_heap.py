"""The heap of a command-line run: set up once, and only where it is glibc's and nobody else has."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ptq.cli import main
from ptq.files.heap import ARENA_MAX, LARGE, MMAP_THRESHOLD, give_back_memory


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What glibc is told, in a process without settings of its own."""
    told: dict[int, int] = {}
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=told.__setitem__))
    monkeypatch.setattr("sys.platform", "linux")
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    return told


def test_every_command_sets_up_the_heap(settings: dict[int, int]) -> None:
    assert CliRunner().invoke(main, ["methods"]).exit_code == 0
    assert settings[ARENA_MAX] == 1
    assert settings[MMAP_THRESHOLD] == LARGE


def test_settings_of_the_user_stay(settings: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    give_back_memory()
    assert not settings


def test_other_c_libraries_are_left_alone(settings: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    give_back_memory()
    assert not settings
