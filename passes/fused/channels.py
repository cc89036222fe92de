"""Count of the channels that values in blocks really have: those that fill up the last block are zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Float
from ptq.passes.fused.blocked import DOMAIN, is_channels_last, is_depthwise, plain_weight
from ptq.passes.fused.writer import Shapes
from ptq.passes.linear import constant, name_of


@dataclass
class _Alike:
    """Values with as many channels as each other.

    Attributes:
        full: Channels with those that fill up the last block.
        spare: Channels at the end that a layer makes nothing of, or for nothing; one number per layer.
        exact: Channels that a change of layout says.
    """

    full: int = 0
    spare: list[int] = field(default_factory=list)
    exact: int | None = None

    @property
    def channels(self) -> int:
        """Channels that have to stay."""
        return self.full - min(self.spare, default=0) if self.exact is None else self.exact


def blocked_channels(graph: ir.Graph, shapes: Shapes) -> dict[str, int]:
    """Count the channels of blocked values.

    Args:
        graph: The graph.
        shapes: Shapes of the values that are put into blocks, on a sample.

    Returns:
        Name of the blocked value -> channels without those that fill up its last block; nothing of values of which
        nobody knows.
    """
    if not any(node.domain == DOMAIN for node in graph):
        return {}
    values: dict[str, _Alike] = {}
    for node in graph:
        names = [str(value.name) for value in node.inputs if value is not None and constant(value) is None]
        if names and node.outputs:
            _read(node, names, shapes, values)
    sources = {
        name_of(node): str(node.inputs[0].name) for node in graph if _is(node, "ReorderInput") and node.inputs[0]
    }
    counts = {name: alike.channels for name, alike in values.items() if alike.channels}
    return counts | {source: counts[name] for name, source in sources.items() if name in counts}


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == DOMAIN and node.op_type == op_type


def _read(node: ir.Node, names: Sequence[str], shapes: Shapes, values: dict[str, _Alike]) -> None:
    """Take in what a node says of the channels of its values."""
    blocked = [name for name in names if name in values]
    if _is(node, "ReorderInput"):
        _read_layout(node, names[0], shapes, values)
    elif _is(node, "Conv"):
        _read_conv(node, names, values)
    elif not blocked:
        return
    elif _is(node, "ReorderOutput"):
        values[blocked[0]].exact = node.attributes.get_int("channels", 0)
    elif node.op_type == "Concat":
        _read_concat(node, blocked, values)
    else:
        _join([*blocked, name_of(node)], values)


def _read_layout(node: ir.Node, source: str, shapes: Shapes, values: dict[str, _Alike]) -> None:
    value, axis = node.inputs[0], -1 if is_channels_last(node) else 1
    shape = shapes.get(source, () if value is None or value.shape is None else value.shape)
    extent = shape[axis] if len(shape) > 1 else 0
    values[name_of(node)] = _Alike(exact=extent if isinstance(extent, int) else 0)


def _read_conv(node: ir.Node, names: Sequence[str], values: dict[str, _Alike]) -> None:
    """Take in what a convolution makes, what it reads, and what is added to it."""
    weight, bias = plain_weight(node), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    out = name_of(node)
    if weight is None:
        values[out] = _Alike(exact=0)
        return
    grouped, depthwise = node.attributes.get_int("group", 1) > 1, is_depthwise(node)
    reach = np.abs(weight)
    rows = reach.max((1, 2, 3)) + (0.0 if bias is None else np.abs(bias))
    values[out] = _Alike(len(weight), [0 if grouped and not depthwise else _trailing_zeros(rows)])
    if names[0] in values and depthwise:
        _join([names[0], out], values)
    elif names[0] in values:
        values[names[0]].spare.append(0 if grouped else _trailing_zeros(reach.max((0, 2, 3))))
    if len(names) > 1 and names[-1] in values and len(node.inputs) > 3:
        _join([names[-1], out], values)


def _read_concat(node: ir.Node, parts: Sequence[str], values: dict[str, _Alike]) -> None:
    """Keep whole what is put together: only whole blocks are."""
    for name in parts:
        values[name].spare.append(0)
    values[name_of(node)] = _Alike(exact=sum(values[name].channels for name in parts))


def _join(names: Sequence[str], values: dict[str, _Alike]) -> None:
    """Make values have as many channels as each other."""
    old = {id(values[name]): values[name] for name in names if name in values}
    exact = [alike.exact for alike in old.values() if alike.exact is not None]
    spare = [count for alike in old.values() for count in alike.spare]
    joined = _Alike(max(alike.full for alike in old.values()), spare, exact[0] if exact else None)
    for name in [name for name, alike in values.items() if id(alike) in old]:
        values[name] = joined
    values.update(dict.fromkeys(names, joined))


def _trailing_zeros(reach: Float) -> int:
    kept = np.flatnonzero(reach)
    return len(reach) if not len(kept) else int(len(reach) - 1 - kept[-1])
