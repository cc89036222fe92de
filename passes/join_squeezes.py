"""Join a Squeeze with the Unsqueeze behind it: converters leave such pairs around every step of a recurrent layer.

Each takes a microsecond, and a network that is called for every frame of sound has little else to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.passes.axes import axes_of
from ptq.passes.graph import add_initializer, fresh_name
from ptq.passes.infer_shapes import infer_statically
from ptq.passes.rewire import drop_unread, stand_in

ONE = 1


@dataclass(frozen=True)
class JoinSqueezes(ir.passes.InPlacePass):
    """Write a Squeeze and the Unsqueeze behind it as one of them, or as nothing.

    Before: y = Unsqueeze(Squeeze(x, [1, 3]), [0]), with x of [1, 1, C, 1]
    After:  y = Squeeze(x, [3])
    Requires: constant axes; the number of axes of x; extents of 1 that are known where these make the difference
    Ensures: y has the same shape; a Squeeze that others read as well stays for them
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Join every pair that one node can stand for."""
        pairs = [(node, first) for node in model.graph if (first := _squeeze_before(node)) is not None]
        if not pairs:
            return ir.passes.PassResult(model, False)
        infer_statically(model)
        changed = [_join(model.graph, first, node) for node, first in pairs]
        return ir.passes.PassResult(model, any(changed))


def _squeeze_before(node: ir.Node) -> ir.Node | None:
    """Return the Squeeze that an Unsqueeze reads."""
    source = node.inputs[0] if node.op_type == "Unsqueeze" and not node.domain else None
    maker = None if source is None else source.producer()
    return maker if maker is not None and maker.op_type == "Squeeze" and not maker.domain else None


def _join(graph: ir.Graph, first: ir.Node, node: ir.Node) -> bool:
    x, dropped, inserted = first.inputs[0], axes_of(first), axes_of(node)
    if x is None or x.shape is None or dropped is None or inserted is None:
        return False
    rank = len(x.shape)
    gone, total = {axis % rank for axis in dropped}, rank - len(dropped) + len(inserted)
    new = {axis % total for axis in inserted}
    before = [None if axis in gone or x.shape[axis] == ONE else axis for axis in range(rank)]
    kept = iter([extent for axis, extent in enumerate(before) if axis not in gone])
    after = [None if axis in new else next(kept) for axis in range(total)]
    less, more = _missing(before, after), _missing(after, before)
    if less and more:
        return False  # axes of 1 go at one place and come at another
    if not less and not more:
        if node.outputs[0].is_graph_output():
            return False
        ir.convenience.replace_all_uses_with(node.outputs[0], x)
        drop_unread(graph, [node.outputs[0]])
        return True
    axes = add_initializer(graph, fresh_name(graph, f"{node.outputs[0].name}_axes"), np.array(less or more, np.int64))
    stand_in(graph, node, ir.node("Squeeze" if less else "Unsqueeze", [x, axes], name=node.name))
    return True


def _missing(one: Sequence[int | None], other: Sequence[int | None]) -> list[int]:
    """Return the places of extents of 1, None here, that a shape has between its others and another one has not."""
    found, counts = [], _ones(other)
    for place, gap in _places(one):
        if counts.get(gap, 0) > 0:
            counts[gap] -= 1
        else:
            found.append(place)
    return found


def _places(shape: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the places of extents of 1, each with how many other extents are in front of it."""
    return [
        (place, sum(each is not None for each in shape[:place])) for place, each in enumerate(shape) if each is None
    ]


def _ones(shape: Sequence[int | None]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for _, gap in _places(shape):
        counts[gap] = counts.get(gap, 0) + 1
    return counts
