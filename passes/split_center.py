"""A convolution as two: its kernel without most of the center tap, and a 1x1 convolution with that.

For weights that use all eight bits already. Shorter ones become sums within one integer kernel and need no second
convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.affine import nearest_level
from ptq.passes.graph import add_initializer
from ptq.passes.linear import constant, name_of

LEVELS = 127
"""Codes of the coarse part on either side of 0."""


@dataclass(frozen=True)
class SplitCenter(ir.passes.InPlacePass):
    """Split re-parameterized convolutions into coarse and fine weights.

    Before: y = Conv(x, W, b)
    After:  y = Add(Conv(x, W - C, b), Conv1x1(x', C)), x' = x cropped where the kernel has less padding than half of it
    Requires: kernels of odd size with given pads.
    Ensures: C lies on codes, so that it is quantized without error; the two parts add up to W bit for bit.
    Preserves float outputs: yes, within rounding.

    Attributes:
        layers: Names of the convolutions.
        per_tensor: One step for the coarse part of all output features.
        levels: Codes of the coarse part on either side of 0.
    """

    layers: frozenset[str]
    per_tensor: bool = False
    levels: int = LEVELS

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split every convolution that is named."""
        chosen = [node for node in model.graph if name_of(node) in self.layers]
        for node in chosen:
            _split(model.graph, node, per_tensor=self.per_tensor, levels=self.levels)
        return ir.passes.PassResult(model, bool(chosen))


def can_split(node: ir.Node) -> bool:
    """Whether a node is a convolution whose kernel has a center, with pads that are given."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" and not node.domain else None
    if weight is None or weight.dtype != np.float32 or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    kernel = weight.shape[2:]
    return int(np.prod(kernel)) > 1 and all(size % 2 for size in kernel)


def coarse_and_fine(
    weight: NDArray[np.float32], *, per_tensor: bool = False, levels: int = LEVELS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut a kernel in two.

    Args:
        weight: Shape [out, in, taps of odd sizes...].
        per_tensor: One step for all output features instead of one each.
        levels: Codes of the coarse part on either side of 0.

    Returns:
        The coarse part of the center tap, codes times step; shape [out, in, 1...]. And the rest, shape of `weight`;
        both add up to the weight exactly.

    Source:
        Coarse & fine weight splitting (RepVGG): step = max |center| / levels, coarse = round(center / step) step.
        Differs: ties to even, a step of 1 for a center of zeros.
    """
    at = (slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))
    center = weight[at]
    reach = np.abs(center).max(None if per_tensor else 1, keepdims=not per_tensor, initial=0.0)
    step = (reach / levels).astype(np.float32)
    step = np.where(step > 0, step, np.float32(1.0)).astype(np.float32)
    coarse = (nearest_level(center / step, -levels, levels) * step).astype(np.float32)
    fine = weight.copy()
    fine[at] = center - coarse  # exact: they are within a factor of two of each other, or coarse is 0
    return coarse.reshape(*coarse.shape, *(1 for _ in weight.shape[2:])), fine


def _split(graph: ir.Graph, node: ir.Node, *, per_tensor: bool, levels: int) -> None:
    weight = constant(node.inputs[1])
    if weight is None:
        raise RuntimeError(f"{name_of(node)} has no constant weight")
    out, source, name = node.outputs[0], node.inputs[0], name_of(node)
    coarse, fine = coarse_and_fine(weight, per_tensor=per_tensor, levels=levels)
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    strides = node.attributes.get_ints("strides", ones)
    half = [rate * (size // 2) for rate, size in zip(node.attributes.get_ints("dilations", ones), kernel, strict=True)]
    pads = node.attributes.get_ints("pads", (0,) * 2 * len(kernel))
    rest = [pad - reach for pad, reach in zip(pads, [*half, *half], strict=True)]
    made = []
    if min(rest) < 0:
        source = _cropped(graph, node, [max(-pad, 0) for pad in rest])
        made.append(source.producer())
    attributes: dict[str, Any] = {
        "strides": list(strides),
        "pads": [max(pad, 0) for pad in rest],
        "kernel_shape": list(ones),
        "group": node.attributes.get_int("group", 1),
    }
    second = ir.node("Conv", [source, add_initializer(graph, f"{name}_coarse_weight", coarse)], attributes)
    both = ir.node("Add", [out, second.outputs[0]])
    for value, suffix in ((second.outputs[0], "_coarse"), (both.outputs[0], "")):
        value.type, value.shape, value.name = out.type, out.shape, f"{name}{suffix}"
    ir.convenience.replace_all_uses_with(out, both.outputs[0], replace_graph_outputs=True)
    both.replace_input_with(0, out)
    out.name = f"{name}_fine"
    both.outputs[0].name = name
    node.replace_input_with(1, add_initializer(graph, f"{name}_fine_weight", fine))
    graph.insert_before(node, [each for each in made if each is not None])
    graph.insert_after(node, [second, both])


def _cropped(graph: ir.Graph, node: ir.Node, ends: list[int]) -> ir.Value:
    """Return the input without the border that the kernel reaches only with its outer taps."""
    source, name, count = node.inputs[0], name_of(node), len(ends) // 2
    if source is None:
        raise RuntimeError(f"{name} has no input")
    stops = [-end if end else np.iinfo(np.int64).max for end in ends[count:]]
    parts = {"starts": ends[:count], "stops": stops, "axes": list(range(2, 2 + count))}
    inputs = [add_initializer(graph, f"{name}_{key}", np.array(part, np.int64)) for key, part in parts.items()]
    cropped = ir.node("Slice", [source, *inputs]).outputs[0]
    cropped.name, cropped.type = f"{name}_cropped", source.type
    if source.shape is not None:
        cropped.shape = ir.Shape([*list(source.shape)[:2], *(None for _ in range(count))])
    return cropped
