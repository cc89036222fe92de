"""The command line in processes of their own, without the seconds that starting Python and its libraries takes.

A server imports everything once, never opens a session, and forks for each order: a crash, a hang or a limit stays
with its case, and stderr is what really reaches the terminal, onnxruntime's own words included.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
MEMORY_BYTES = 8 * 2**30  # address space, most of it reserved by libraries
KINDS = {"fsize": resource.RLIMIT_FSIZE}


@dataclass(frozen=True)
class Finished:
    """How a process ended.

    Attributes:
        code: Exit code; -9 and the like after a signal; None when it took too long, waits for a core left out.
        seconds: How long it took.
        peak_mb: Its largest resident memory.
        stdout: What it wrote there.
        stderr: What it wrote there.
    """

    code: int | None
    seconds: float
    peak_mb: float
    stdout: str
    stderr: str


@dataclass
class Waiting:
    """How long a process and its children stood ready while others had the cores: a busy machine is no fault of theirs.

    Attributes:
        pid: The process.
        seen: Seconds of each, as Linux tells while it lives.
    """

    pid: int
    seen: dict[int, float] = field(default_factory=dict)

    def seconds(self) -> float:
        """Up to now."""
        for pid in (self.pid, *_children(self.pid)):
            with suppress(OSError):  # gone, or a system that does not tell
                self.seen[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        return sum(self.seen.values())


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Server:
    """A process that answers each order, a line of JSON, with another one; a context manager.

    Attributes:
        module: What it runs.
        environment: Variables on top of this process's own.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self.environment: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop it."""
        if self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            self._process.stdout.close()
        self._process.wait()

    def ask(self, order: Any) -> Any:
        """The answer to an order."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class CommandLine(Server):
    """Runs `ptq` again and again, or what else a module serves."""

    def __init__(self, module: str = "tests.trust.forks") -> None:
        super().__init__(module)

    def run(self, arguments: list[str], *, root: Path, limits: dict[str, int], seconds: float) -> Finished:
        """Run once, in folder root/cwd with temporary files in root/temp."""
        return Finished(**self.ask({"arguments": arguments, "root": str(root), "limits": limits, "seconds": seconds}))


def serve(main: Callable[..., Any]) -> None:
    """Fork for every order on stdin."""
    for line in sys.stdin:
        order = json.loads(line)
        pipes = [os.pipe() for _ in range(2)]  # not files: a limit on those is none on what a terminal shows
        child = os.fork()
        if not child:
            _obey(order, main, [os.open(os.devnull, os.O_RDONLY), *(end for _, end in pipes)])
        for _, end in pipes:
            os.close(end)
        answer = _wait(child, order["seconds"], [end for end, _ in pipes])
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


def _obey(order: dict[str, Any], main: Any, streams: list[int]) -> None:
    """Be the command line, to the exit code."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(Path(order["root"]) / "cwd")
    tempfile.tempdir = str(Path(order["root"]) / "temp")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, limit in order["limits"].items():
        resource.setrlimit(KINDS[name], (limit, limit))
    code = 0
    try:
        main(order["arguments"], prog_name="ptq")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int, seconds: float, streams: list[int]) -> dict[str, Any]:
    """Read what a child writes until it ends, or end it."""
    start, waiting = time.perf_counter(), Waiting(child)
    texts = [b"" for _ in streams]
    for stream in streams:
        os.set_blocking(stream, False)
    late = False
    while True:
        waited = waiting.seconds()
        ended, status, usage = os.wait4(child, os.WNOHANG)
        texts = [text + _available(stream) for text, stream in zip(texts, streams, strict=True)]
        if ended:
            break
        if not late and time.perf_counter() - start - waited > seconds:
            late = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.002)
    for stream in streams:
        os.close(stream)
    out, err = (text.decode(errors="replace") for text in texts)
    code = None if late else os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    return {"code": code, "seconds": seconds, "peak_mb": usage.ru_maxrss / 1024, "stdout": out, "stderr": err}


def _available(stream: int) -> bytes:
    text = b""
    try:
        while block := os.read(stream, 1 << 16):
            text += block
    except BlockingIOError:
        pass
    return text


if __name__ == "__main__":
    from ptq import api, display  # noqa: F401 - everything is loaded once, here
    from ptq.cli import main

    serve(main)
