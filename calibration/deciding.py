"""Decisions of a float network on samples, for another network that is to take the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from ptq.core.arrays import Feed
from ptq.models.sessions import run, session_of
from ptq.passes.decisions import decisions_of
from ptq.passes.infer_shapes import exposed


@contextmanager
def deciding(
    model: ir.Model, other: ir.Model, custom_ops: Sequence[str | Path] = ()
) -> Iterator[Callable[[Feed], Feed]]:
    """Open a float network that tells what it decides.

    Args:
        model: Float network.
        other: Network that was made of it.
        custom_ops: Libraries the network needs.

    Returns:
        Function from a sample to the values that decide sizes or order in the float network, by name, as far as the
        other has them; none for most networks.
    """
    made = {str(value.name) for node in other.graph for value in node.outputs}
    names = tuple(name for name in decisions_of(model).values if name in made)
    if not names:
        yield lambda _feed: {}
        return
    with session_of(exposed(model, names), custom_ops=custom_ops) as session:
        yield lambda feed: dict(zip(names, run(session, dict(feed), names), strict=True))
