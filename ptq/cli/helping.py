"""Help of the command line: options under titles, an example at the end, and proposals for a shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., None]
OTHER, TITLES = "Other", "option_titles"


class Verb(click.Command):
    """A command whose help has a title over each group of options, and an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "epilog": f"\b\nExample:\n  {example}"})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in the order in which their titles appear, those without one last."""
        titles = {} if self.callback is None else self.callback.__dict__.get(TITLES, {})
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(titles.get(param.name, OTHER), []).append(record)
        for title in sorted(groups, key=lambda each: each == OTHER):
            with formatter.section(title if len(groups) > 1 else "Options"):
                formatter.write_dl(groups[title])


def options(*decorators: Callable[[Command], Command], title: str = OTHER) -> Callable[[Command], Command]:
    """Join several options into one decorator, under one title."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
            newest: click.Parameter = command.__dict__["__click_params__"][-1]  # where click's decorators put it
            command.__dict__.setdefault(TITLES, {}).setdefault(newest.name, title)
        return command

    return apply


def _starting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def propose_targets(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Propose the names of targets that begin with what was typed."""
    from ptq.target import TARGETS

    return _starting([target.name for target in TARGETS], incomplete)


def propose_observers(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Propose the names of observers that begin with what was typed."""
    from ptq.calibration.observers import Observer
    from ptq.core.family import members, tag_of

    return _starting([*map(tag_of, members(Observer)), "dynamic"], incomplete)


def propose_weight_methods(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Propose the names of weight methods that begin with what was typed."""
    from ptq.core.family import members, tag_of
    from ptq.weights import WeightMethod

    return _starting([*map(tag_of, members(WeightMethod))], incomplete)


def propose_exports(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Propose the names of targets of exports that begin with what was typed."""
    from ptq.exporters import EXPORTERS

    return _starting([*EXPORTERS], incomplete)
