"""The verb `completion`: completion of commands, options, methods, targets and files in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ptq.cli.helping import Verb
from ptq.cli.running import ending, guarded


@click.command(cls=Verb, example='eval "$(ptq completion bash)"   # fish: ptq completion fish | source')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
@guarded
def completion(context: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete ptq.

    Commands, options, targets, methods and files, with the Tab key.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click does not know {shell}")
    with ending(0):
        click.echo(kind(context.find_root().command, {}, "ptq", "_PTQ_COMPLETE").source())
