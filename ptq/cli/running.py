"""Running of verbs: errors of the user are one line and exit code 2, interrupts have codes of their own."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import click

from ptq.core.errors import PtqError
from ptq.core.printable import printable

GOAL_MISSED, USER_ERROR, INTERRUPTED, TERMINATED = 1, 2, 130, 143

LONGEST = 800
"""Characters of an error line."""

Command = Callable[..., None]


class Terminated(BaseException):
    """Raised on SIGTERM: what is half done has to be cleared away."""


class OneLineErrors(click.Group):
    """A group whose usage errors look like all other errors: one line, exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands, the most important ones first."""
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options; some of them print and end."""
        with _perhaps_unheard():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Read the options of a verb, and run it."""
        with _perhaps_unheard():
            return super().invoke(ctx)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and word what click refuses."""
        words = list(args[0] if args and args[0] is not None else kwargs.get("args") or sys.argv[1:])
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False, "obj": words})
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ptq"
            _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
        except (click.Abort, KeyboardInterrupt):
            _end(KeyboardInterrupt())
        except OSError:
            if "--debug" in words:
                raise
            with ending(0):  # help that cannot be written
                raise
        with ending(result if isinstance(result, int) else 0):
            pass  # help; verbs have ended by themselves


def guarded(command: Command) -> Command:
    """Turn errors of the user into one line and exit code 2; everything else is a bug and shows itself."""

    @functools.wraps(command)
    def call(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            if threading.current_thread() is threading.main_thread():  # no other may
                signal.signal(signal.SIGTERM, _terminate)
            with warnings.catch_warnings():
                if not debug:
                    warnings.simplefilter("ignore")  # numpy's, of libraries: what matters is an error of ours
                command(*args, **kwargs)
        except (PtqError, OSError, MemoryError, KeyboardInterrupt, Terminated) as error:
            if debug and isinstance(error, Exception):
                raise
            _end(error)

    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(call)


@contextmanager
def ending(code: int) -> Iterator[None]:
    """Flush what was said inside and exit with the code; also if nobody listens any more."""
    try:
        yield
        if sys.stdout is not None:  # closed before it began
            sys.stdout.flush()
    except BrokenPipeError:
        _give_up(sys.stdout)
    except OSError as error:
        _give_up(sys.stdout)
        _fail(f"standard output: {error.strerror or error}; give it a place where it can be written")
    sys.exit(code)


@contextmanager
def _perhaps_unheard() -> Iterator[None]:
    """Exit with 0 if nobody listens to help: click would exit with 1, which stands for a goal that was missed."""
    try:
        yield
    except BrokenPipeError:
        _give_up(sys.stdout)
        sys.exit(0)


def _give_up(stream: TextIO) -> None:
    """Discard what a stream still holds: Python would try once more as it ends, and exit with a code of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def _end(error: BaseException) -> NoReturn:
    """Say in one line what ended the command, and exit."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        interrupted = isinstance(error, KeyboardInterrupt)
        _say("interrupted" if interrupted else "terminated")
        sys.exit(INTERRUPTED if interrupted else TERMINATED)
    if isinstance(error, MemoryError):
        _fail("out of memory; use fewer or smaller samples, or a machine with more memory")
    if isinstance(error, OSError):
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    _fail(str(error))


def _fail(message: str) -> NoReturn:
    line = printable(" ".join(message.split()))
    line = line if len(line) < LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 3 :]}"  # the cause is last
    _say(f"error: {line}")
    sys.exit(USER_ERROR)


def _say(line: str) -> None:
    """Write to stderr what ends the command; where that cannot be written, the exit code has to do."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
        if stream is not None:  # closed before it began
            try:
                click.echo(text, file=stream, nl=False)
            except OSError:
                _give_up(stream)
