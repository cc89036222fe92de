"""Faults in the middle of a run: signals at any instant, and calls to the system that fail or are the last ones.

As `forks`, a server imports everything once and forks for each order; a small C library loaded before all others
counts the calls that change files under the case's folder, whichever library makes them. Python's own functions are
not patched: what the operating system sees is what is counted.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.trust.forks import Server, Waiting, _available, _obey

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "PTQ_FAULTS_LIBRARY"


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        call: Which call that changes a file; 0 is none.
        failure: Its errno, or minus a signal that ends the process before the call.
        lasting: All later calls fail as well.
        signal: Sent to the process; 0 is none.
        phase: When it is sent: as this step begins ("start", "read", "prepare", ... "write") ...
        after: ... and so many seconds later.
    """

    call: int = 0
    failure: int = 0
    lasting: bool = False
    signal: int = 0
    phase: str = "start"
    after: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: Exit code; -9 and the like after a signal; None when it took too long.
        seconds: How long it took.
        reaction: Seconds from the signal to the end, but those it waited for a core; None when it came too late.
        phases: Begin of each step, seconds.
        calls: What changed files: the kind of call and the path within the stage.
        stdout: What it wrote there.
        stderr: What it wrote there.
    """

    code: int | None
    seconds: float
    reaction: float | None
    phases: dict[str, float]
    calls: list[str]
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Order:
    """One run of the command line.

    Attributes:
        arguments: What is typed.
        root: The stage.
        fault: What goes wrong.
        constants: Numbers of the product to be changed, by "module.NAME"; "NAME" is the one of every module.
    """

    arguments: Sequence[str]
    root: str
    fault: Fault = field(default_factory=Fault)
    constants: Mapping[str, float] = field(default_factory=dict)


class Saboteur(Server):
    """Runs `ptq` with faults; a context manager."""

    def __init__(self) -> None:
        super().__init__("tests.trust.faults")

    def __enter__(self) -> Self:
        """Build the library and start the server."""
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / "faults.so"
        compiler = shutil.which("cc")
        assert compiler, "needs a C compiler"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), LIBRARY: str(library)}
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop the server."""
        super().__exit__(kind, error, at)
        self._folder.cleanup()

    def run(self, order: Order) -> Ended:
        """Run once, in folder root/cwd with temporary files in root/temp."""
        return self.run_all([order])[0]

    def run_all(self, orders: Sequence[Order]) -> list[Ended]:
        """Run several at once."""
        return [Ended(**answer) for answer in self.ask([asdict(order) for order in orders])]


@dataclass
class Child:
    """A running process, seen from the server."""

    pid: int
    fault: Fault
    streams: list[int]
    log: int
    start: float = field(default_factory=time.perf_counter)
    texts: list[bytes] = field(default_factory=lambda: [b"", b"", b""])
    phases: dict[str, float] = field(default_factory=dict)
    sent: float | None = None
    late: bool = False
    answer: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._waiting = Waiting(self.pid)
        self._waited = self._waited_before = 0.0

    def look(self, seconds: float) -> None:
        """Read what it wrote, send its signal when the time has come, end it when it takes too long."""
        self._waited = self._waiting.seconds()
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        now = time.perf_counter() - self.start
        self.texts = [text + _available(stream) for text, stream in zip(self.texts, self.streams, strict=True)]
        for line in self.texts[2].decode().splitlines():
            self.phases.setdefault(line, now)
        if ended:
            self._close(now, status)
        elif self.fault.signal and self.sent is None and self._is_time(now):
            self.sent, self._waited_before = time.perf_counter() - self.start, self._waited
            os.kill(self.pid, self.fault.signal)
        elif now - self._waited > seconds and not self.late:
            self.late = True
            os.killpg(self.pid, signal.SIGKILL)

    def _is_time(self, now: float) -> bool:
        return now - self.phases.get(self.fault.phase, now) >= self.fault.after and self.fault.phase in self.phases

    def _close(self, now: float, status: int) -> None:
        calls = os.pread(self.log, 1 << 24, 0).decode(errors="replace").splitlines()
        for stream in (*self.streams, self.log):
            os.close(stream)
        out, err = (text.decode(errors="replace") for text in self.texts[:2])
        self.answer = {
            "code": None if self.late else os.waitstatus_to_exitcode(status),
            "seconds": now,
            "reaction": None if self.sent is None else now - self.sent - (self._waited - self._waited_before),
            "phases": self.phases,
            "calls": calls,
            "stdout": out,
            "stderr": err,
        }


SECONDS = 120.0


def serve() -> None:
    """Fork for every order on stdin."""
    from ptq import api, display  # noqa: F401 - everything is loaded once, here
    from ptq.cli import main

    for line in sys.stdin:
        children = [_fork(order, main) for order in json.loads(line)]
        while any(child.answer is None for child in children):
            for child in children:
                if child.answer is None:
                    child.look(SECONDS)
            time.sleep(0.0005)
        print(json.dumps([child.answer for child in children]), flush=True)  # noqa: T201 - the answer


def _fork(order: dict[str, Any], main: Any) -> Child:
    pipes = [os.pipe() for _ in range(3)]
    log = os.memfd_create("calls")
    fault = Fault(**order["fault"])
    child = os.fork()
    if not child:
        begin = _reporting(pipes[2][1], main)
        _set_constants(order["constants"])
        arm = ctypes.CDLL(os.environ[LIBRARY]).faults_arm
        arm(order["root"].encode(), log, fault.call, fault.failure, int(fault.lasting))
        streams = [os.open(os.devnull, os.O_RDONLY), *(end for _, end in pipes[:2])]
        _obey({"limits": {}, **order}, begin, streams)
    for end, other in pipes:
        os.close(other)
        os.set_blocking(end, False)
    return Child(child, fault, [end for end, _ in pipes], log)


def _reporting(pipe: int, main: Callable[..., Any]) -> Callable[..., Any]:
    """The command line, telling the server which step begins."""
    from ptq import api, pipeline

    def tell(step: str) -> None:
        os.write(pipe, step.encode() + b"\n")

    quantize, save = api.quantize, pipeline.Result.save

    def telling(*arguments: Any, progress: Callable[[str], None], **options: Any) -> Any:
        tell("read")

        def both(step: str) -> None:
            progress(step)
            tell(step.partition(":")[0])

        result = quantize(*arguments, progress=both, **options)
        tell("write")
        return result

    def saving(self: Any, path: Any) -> None:
        save(self, path)
        tell("saved")

    setattr(api, "quantize", telling)  # noqa: B010 - mypy refuses the plain assignment
    setattr(pipeline.Result, "save", saving)  # noqa: B010

    def begin(*arguments: Any, **options: Any) -> Any:
        tell("start")
        return main(*arguments, **options)

    return begin


def _set_constants(constants: Mapping[str, float]) -> None:
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        for key, found in list(sys.modules.items()):
            if hasattr(found, constant) and (key == module or (not module and key.split(".")[0] == "ptq")):
                setattr(found, constant, value)


def instants(phases: Mapping[str, float], end: float, number: int, seed: int) -> list[Fault]:
    """SIGKILL at random instants of a run that was seen before: every other one while files are written."""
    rng = random.Random(seed)
    names = [name for name in phases if name != "saved"]
    faults = []
    for index in range(number):
        at = rng.uniform(phases["write"], end) if index % 2 else rng.uniform(0, phases["write"])
        phase = max((name for name in names if phases[name] <= at), key=lambda name: phases[name], default=names[0])
        faults.append(Fault(signal=signal.SIGKILL, phase=phase, after=max(at - phases[phase], 0)))
    return faults


if __name__ == "__main__":
    serve()
