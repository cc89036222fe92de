"""How every verb runs: errors of the user are one line and exit code 2, interrupts have codes of their own."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ptq.core.errors import PtqError
from ptq.core.printable import printable

GOAL_MISSED, USER_ERROR, INTERRUPTED, TERMINATED = 1, 2, 130, 143

LONGEST = 800
"""Characters of an error line."""

Command = Callable[..., None]


class Terminated(BaseException):
    """SIGTERM came: what is half done has to be cleared away."""


class OneLineErrors(click.Group):
    """A group whose usage errors look like all other errors: one line, exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The most important ones first."""
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and word what click refuses."""
        try:
            words = list(args[0] if args and args[0] is not None else kwargs.get("args") or sys.argv[1:])
            result = super().main(*args, **{**kwargs, "standalone_mode": False, "obj": words})
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ptq"
            _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        except OSError as error:  # help that cannot be written
            _end(error)
        sys.exit(result if isinstance(result, int) else 0)


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
    """Say the last words and exit; if nobody listens any more, the code says it all the same."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def _end(error: BaseException) -> None:
    """Say in one line what ended the command, and exit."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        interrupted = isinstance(error, KeyboardInterrupt)
        click.echo("interrupted" if interrupted else "terminated", err=True)
        sys.exit(INTERRUPTED if interrupted else TERMINATED)
    if isinstance(error, MemoryError):
        _fail("out of memory; use fewer or smaller samples, or a machine with more memory")
    if isinstance(error, OSError):
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    _fail(str(error))


def _fail(message: str) -> None:
    line = printable(" ".join(message.split()))
    line = line if len(line) < LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 3 :]}"  # the cause is last
    click.echo(f"error: {line}", err=True)
    sys.exit(USER_ERROR)
