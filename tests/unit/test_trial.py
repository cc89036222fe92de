"""A model that onnxruntime does not survive is refused; the process that finds out is gone afterwards."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptq.models import probe as trial
from ptq.models.probe import require_survivable
from ptq.models.sessions import RunError
from tests.builders import random
from tests.trust.cases import half_a_library, proto_of, small_net

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
IMAGE = {"x": random((1, 3, 8, 8))}
ENDLESS = """net (float[1] x) => (float[1] y) {
    y = Loop (count, , x) <body = inner (int64 i, bool go, float[1] a) => (bool on, float[1] b) {
        on = Identity (go)
        b = Neg (a)
    }>
}"""


@pytest.fixture(autouse=True)
def _no_child_stays() -> Iterator[None]:
    before = _children()
    yield
    assert _children() == before


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_good_models_pass_quickly_and_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    start = _processor_seconds()
    require_survivable(small_net().SerializeToString(), IMAGE)
    assert _processor_seconds() - start < 2
    assert capfd.readouterr() == ("", "")


def _processor_seconds() -> float:
    """Of this process and its children that have ended: what a busy machine does not lengthen."""
    return sum(os.times()[:4])


def test_what_onnxruntime_refuses_is_left_to_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    require_survivable(b"no model", IMAGE)
    require_survivable(small_net().SerializeToString(), {"x": np.zeros(3, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_crashes_are_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Which models onnxruntime crashes on changes with its version; this one crashes where onnxruntime would run it."""
    monkeypatch.setattr(trial, "run", lambda *_: ctypes.string_at(0))
    with pytest.raises(RunError, match=r"crashes on the model \(SIGSEGV\); export it in another way$"):
        require_survivable(small_net().SerializeToString(), IMAGE)
    assert capfd.readouterr() == ("", "")


def test_crashes_of_operator_libraries_are_told(tmp_path: Path) -> None:
    path = tmp_path / "half.so"
    path.write_bytes(half_a_library())
    with pytest.raises(RunError, match=r"or in an operator library \(SIG\w+\).* or build the library again$"):
        require_survivable(small_net().SerializeToString(), IMAGE, [path])


def test_hangs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.3)
    model = proto_of(ENDLESS, {"count": np.array(2**40)})
    with pytest.raises(RunError, match="takes more than"):
        require_survivable(model.SerializeToString(), {"x": random((1,))})
