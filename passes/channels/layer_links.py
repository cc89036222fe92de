"""Links of layers: features of the weight to those of the output, and inputs that a layer sums over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ptq.passes.channels.links import Axis, Kept, Link, Read, Tie, extent, one_to_one, rank
from ptq.passes.linear import constant


def conv(node: ir.Node) -> Iterator[Link]:
    """Link a convolution: in groups, all channels of one stand or fall together."""
    source, weight, out, bias = *node.inputs[:2], node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if source is None or weight is None or not _is_weight(weight):
        return
    yield from one_to_one(Axis(weight, 0), Axis(out, 1))
    if bias is not None:
        yield from one_to_one(Axis(bias, 0), Axis(out, 1))
    groups = node.attributes.get_int("group", 1)
    if groups == 1:
        yield Read(node, Axis(source, 1), Axis(weight, 1), not is_padded(node))
    else:
        yield from _grouped(Axis(source, 1), Axis(out, 1), groups)


def conv_transpose(node: ir.Node) -> Iterator[Link]:
    """Link a transposed convolution; a constant in front of it is none behind, as not all taps meet everywhere."""
    source, weight, out, bias = *node.inputs[:2], node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if source is None or weight is None or not _is_weight(weight):
        return
    groups = node.attributes.get_int("group", 1)
    if bias is not None:
        yield from one_to_one(Axis(bias, 0), Axis(out, 1))
    if groups == 1:
        yield from one_to_one(Axis(weight, 1), Axis(out, 1))
        yield Read(node, Axis(source, 1), Axis(weight, 0), takes_constants=False)
    else:
        yield from one_to_one(Axis(weight, 0), Axis(source, 1))
        yield from _grouped(Axis(source, 1), Axis(out, 1), groups)


def _grouped(source: Axis, out: Axis, groups: int) -> Iterator[Link]:
    """Tie all channels of a group, in front and behind, to its first one behind."""
    channels, features = extent(source), extent(out)
    if channels is None or features is None or groups < 2:
        return
    first = np.arange(groups) * (features // groups)
    yield Tie(source, out, (np.arange(channels), np.repeat(first, channels // groups)))
    yield Tie(out, out, (np.arange(features), np.repeat(first, features // groups)))


def keep_groups(node: ir.Node, kept: Kept) -> None:
    """Write how many groups are left."""
    source, groups = node.inputs[0], node.attributes.get_int("group", 1)
    if source is not None and groups > 1:
        mask = kept(Axis(source, 1))
        node.attributes["group"] = ir.AttrInt64("group", int(mask.reshape(groups, -1)[:, 0].sum()))


def gemm(node: ir.Node) -> Iterator[Link]:
    """Link a Gemm with a constant weight."""
    source, weight, out = *node.inputs[:2], node.outputs[0]
    if source is None or weight is None or not _is_weight(weight) or node.attributes.get_int("transA", 0) == 1:
        return
    transposed = node.attributes.get_int("transB", 0)
    yield from one_to_one(Axis(weight, 0 if transposed else 1), Axis(out, 1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        yield from one_to_one(Axis(bias, (rank(bias) or 1) - 1), Axis(out, 1))
    yield Read(node, Axis(source, 1), Axis(weight, 1 if transposed else 0))


def matmul(node: ir.Node) -> Iterator[Link]:
    """Link a product: with a weight behind it, or of two activations, whose common axis is left alone."""
    first, second, out = *node.inputs, node.outputs[0]
    ranks = rank(first), rank(second), rank(out)
    if first is None or second is None or None in ranks:
        return
    left, right, behind = (each or 0 for each in ranks)
    if left < 2 or right < 2 or first is second:  # one axis would be summed over, and be there behind
        return
    yield from one_to_one(Axis(second, right - 1), Axis(out, behind - 1))
    yield from one_to_one(Axis(first, left - 2), Axis(out, behind - 2))
    for value, size in ((first, left), (second, right)):
        for axis in range(size - 2):
            yield from one_to_one(Axis(value, axis), Axis(out, axis + behind - size))
    if right == 2 and _is_weight(second):
        yield Read(node, Axis(first, left - 1), Axis(second, 0))


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution may read zeros from beyond its input."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    return any(node.attributes.get_ints("pads", ())) if auto == "NOTSET" else auto != "VALID"


def gather(node: ir.Node) -> Iterator[Link]:
    """Link what a look-up in a table leaves alone, and what it picks by constant indices."""
    table, indices, out = *node.inputs, node.outputs[0]
    known, places = rank(table), rank(indices)
    if table is None or indices is None or known is None or places is None:
        return
    axis = node.attributes.get_int("axis", 0) % known
    for each in range(known):
        if each != axis:
            yield from one_to_one(Axis(table, each), Axis(out, each if each < axis else each + places - 1))
    picked, size = constant(indices), extent(Axis(table, axis))
    if picked is not None and picked.ndim == 1 and picked.size > 1 and size is not None and len(indices.uses()) == 1:
        at = picked.astype(np.int64) % size
        yield Tie(Axis(table, axis), Axis(out, axis), (at, np.arange(len(at))))


def keep_gathered(node: ir.Node, kept: Kept) -> None:
    """Number what is picked anew."""
    table, indices, out = *node.inputs, node.outputs[0]
    picked = constant(indices)
    if table is None or indices is None or picked is None or picked.ndim != 1:
        return
    axis = node.attributes.get_int("axis", 0) % (rank(table) or 1)
    left = kept(Axis(table, axis))
    if left.all():
        return
    numbers = np.cumsum(left) - 1
    chosen = picked.astype(np.int64)[kept(Axis(out, axis))] % len(left)
    indices.const_value = ir.tensor(numbers[chosen].astype(picked.dtype), name=indices.name)
    indices.shape = ir.Shape(chosen.shape)


def _is_weight(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.dtype == np.float32 and value.is_initializer()
