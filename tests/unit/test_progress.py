"""Progress: how far each step is, in a terminal and nowhere else, and of no influence on results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import ptq
from ptq.cli import main
from ptq.core.progress import counted
from ptq.display.progress import STEPS, Steps
from ptq.recipe import Weights
from ptq.weights import Gptq
from tests.builders import attention, conv_net, feeds, model_from_text, random

pty = pytest.importorskip("pty")


class Counter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.counts: dict[str, list[tuple[int, int | None]]] = defaultdict(list)

    def __call__(self, step: str) -> None:
        self.steps.append(step)

    def advance(self, done: int, total: int | None) -> None:
        self.counts[self.steps[-1]].append((done, total))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ir.save(conv_net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(24, 3, 16, 16)]))
    return tmp_path


def test_every_long_step_says_how_far_it_is(folder: Path) -> None:
    counter = Counter()
    ptq.quantize(folder / "m.onnx", folder / "d.npz", ptq.Recipe(weights=Weights(Gptq(), 4)), progress=counter)
    assert counter.steps == ["prepare", "squeeze", "equalize", "calibrate", "solve", "lower", "verify"]
    assert counter.counts["calibrate"] == [(i + 1, 21) for i in range(21)]
    assert counter.counts["verify"] == [(i + 1, 3) for i in range(3)]
    assert counter.counts["solve"] == [(i + 1, 4) for i in range(4)] * 2


def test_pairs_of_convolutions_are_counted() -> None:
    text = "m (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {\n a = Conv (x, w)\n r = Relu (a)\n y = Conv (r, v)\n}"
    model, counter = model_from_text(text, {"w": random((8, 3, 3, 3)), "v": random((4, 8, 3, 3))}), Counter()
    ptq.quantize(model, {"x": np.concatenate([feed["x"] for feed in feeds(16, 3, 8, 8)])}, progress=counter)
    assert counter.counts["equalize"] == [*((i + 1, 14) for i in range(14)), (1, 1)]


def test_two_passes_over_the_samples_are_counted_each() -> None:
    counter, data = Counter(), {"x": np.concatenate([feed["x"] for feed in feeds(16, 7, 16)])}
    ptq.quantize(attention(), data, progress=counter)
    assert counter.counts["calibrate"] == [(i + 1, 14) for i in range(14)] * 2
    iterable = Counter()
    ptq.quantize(attention(), iter(feeds(16, 7, 16)), progress=iterable)
    assert iterable.counts["calibrate"][0] == (1, None)


def test_counting_changes_no_byte_and_one_who_only_listens_is_not_counted_for(folder: Path) -> None:
    names: list[str] = []
    runs = [ptq.quantize(folder / "m.onnx", folder / "d.npz", progress=each) for each in (Counter(), names.append)]
    assert len({run.delivery.fingerprint for run in runs}) == 1
    assert names == ["prepare", "squeeze", "equalize", "calibrate", "solve", "lower", "verify"]
    items = [1, 2]
    assert counted(items, 2, names.append) is items


def test_words_and_the_time_that_is_left() -> None:
    now, lines = [0.0], list[str]()
    steps = Steps(lines.append, lambda: now[0])

    def at(time: float, done: int, total: int | None) -> str:
        now[0] = time
        steps.advance(done, total)
        return lines[-1].removeprefix("running the calibration set: ")

    steps("calibrate")
    assert at(0.5, 5, 100) == "5 of 100"
    assert at(2.0, 20, 100) == "20 of 100, about 8 s left"
    assert at(2.01, 21, 100) == "20 of 100, about 8 s left", "not more often than a person reads"
    assert at(20.0, 25, 1000) == "25 of 1000, about 13 min left"
    assert at(30.0, 1, 100) == "1 of 100", "another pass starts anew"
    assert at(230.0, 2, 100) == "2 of 100, about 2.7 h left"
    assert at(300.0, 77, None) == "77"
    steps("layer 3 of 9: \x1b[2J[red]")
    assert lines[-1] == "layer 3 of 9: \\x1b[2J[red]"


def test_a_pipe_sees_words_alone(folder: Path) -> None:
    command = ["quantize", str(folder / "m.onnx"), "--data", str(folder / "d.npz"), "-o", str(folder / "q.onnx")]
    done = CliRunner().invoke(main, command)
    assert done.stderr == ""
    assert done.stdout.isprintable() or not set(done.stdout) - {"\n"} - set(map(chr, range(32, 127)))


def in_terminal(*arguments: str, **environment: str) -> str:
    """What a terminal of 100 columns gets."""
    ours, theirs = pty.openpty()
    known = {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "ptq", *arguments]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | known) as process:
        os.close(theirs)
        parts = []
        while True:
            try:
                parts.append(os.read(ours, 65536))
            except OSError:  # how Linux says that the other side is closed
                break
            if not parts[-1]:
                break
    os.close(ours)
    assert process.returncode == 0, b"".join(parts)
    return b"".join(parts).decode()


def test_a_terminal_sees_the_steps_and_gets_its_cursor_back(folder: Path) -> None:
    command = ["quantize", str(folder / "m.onnx"), "--data", str(folder / "d.npz"), "-o", str(folder / "q.onnx")]
    said = in_terminal(*command)
    assert any(words in said for words in STEPS.values()), "which one depends on how long each takes here"
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert "\x1b[1mverdict" in said
    plain = in_terminal(*command, NO_COLOR="1")
    assert not [code for code in ("\x1b[3", "\x1b[1;3", "\x1b[9") if code in plain]
    assert "\x1b" not in in_terminal(*command, "--quiet")
    assert "\x1b" not in in_terminal(*command, TERM="dumb")
