"""Fold zeros around images into the convolutions that read them: converters of TensorFlow models write them apart."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ptq.passes.linear import constant
from ptq.passes.rewire import drop_unread


@dataclass(frozen=True)
class FoldPads(ir.passes.InPlacePass):
    """Fold a Pad with zeros into the convolutions behind it.

    Before: y = Conv <pads = [0, 0, 0, 0]> (Pad(x, [0, 0, 0, 0, 0, 0, 1, 1]), W)
    After:  y = Conv <pads = [0, 0, 1, 1]> (x, W)
    Requires: constant pads along axes of the image, none negative; nothing but convolutions reads the result
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every Pad that only convolutions read, what is nearest to them first."""
        pads = [node for node in model.graph if node.op_type == "Pad" and not node.domain]
        changed = [_fold(node) for node in reversed(pads)]
        return ir.passes.PassResult(model, any(changed))


def _fold(node: ir.Node) -> bool:
    source, result, widths = node.inputs[0], node.outputs[0], _widths(node)
    convs = [use.node for use in result.uses()]
    if source is None or widths is None or not convs or result.is_graph_output():
        return False
    if not all(_takes_pads(conv, result, len(widths)) for conv in convs):
        return False
    for conv in dict.fromkeys(convs):
        own = conv.attributes.get_ints("pads") or [0] * len(widths)
        both = [one + other for one, other in zip(own, widths, strict=True)]
        conv.attributes["pads"] = ir.AttrInt64s("pads", both)
        conv.attributes.pop("auto_pad", None)  # VALID or NOTSET, which knows no pads or says no more
        conv.replace_input_with(0, source)
    drop_unread(node.graph, [result])  # type: ignore[arg-type] # it was found in one
    return True


def _widths(node: ir.Node) -> list[int] | None:
    """Return how many zeros a Pad puts before each axis of an image, then behind; None if it does something else."""
    given, axes = constant(node.inputs[1]), node.inputs[3] if len(node.inputs) > 3 else None
    filled = node.inputs[2] if len(node.inputs) > 2 else None
    value = None if filled is None else constant(filled)
    if given is None or axes is not None or (filled is not None and (value is None or value.any())):
        return None
    if node.attributes.get_string("mode", "constant") != "constant":
        return None
    both = given.reshape(2, -1)
    if both[:, :2].any() or (both < 0).any():
        return None
    return [int(width) for width in both[:, 2:].reshape(-1)]


def _takes_pads(conv: ir.Node, value: ir.Value, count: int) -> bool:
    """Whether a node is a convolution of a value, with pads of its own that may grow."""
    if conv.op_type != "Conv" or conv.domain or conv.inputs[0] is not value or value in conv.inputs[1:]:
        return False
    own = conv.attributes.get_ints("pads")
    auto = conv.attributes.get_string("auto_pad", "NOTSET")
    return auto in ("NOTSET", "VALID") and (own is None or len(own) == count)
