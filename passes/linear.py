"""Questions that several passes ask of a graph: which nodes are linear layers, which values are constant."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.layer import LinearLayer
from ptq.core.matrix import WeightLayout
from ptq.core.unfold import AutoPad, Unfold

LANES = (4, 8, 16)
"""Output features that a vector of the native kernels holds, on ARM, with AVX2, with AVX512."""
WIDEST_IMAGE_KERNEL, MOST_TAPS = 16, 64
MOST_INPUTS = 2**30 // (255 * 128)
"""Inputs per feature whose products fit half of 32 bits, whatever the codes; the bias has the other half."""

NARROW_GROUP = 16
"""Channels per group below which onnxruntime's integer convolution takes up to four times as long as the float one."""


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of a value that cannot change; None for others."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def name_of(node: ir.Node) -> str:
    """Return the name by which a node is known everywhere: its first output with a name, which is unique."""
    return next((str(value.name) for value in node.outputs if value.name), "")


def is_float32(value: ir.Value | None) -> bool:
    """Whether a value holds float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def describe_linear(node: ir.Node, *, integer: bool = True, native: bool = False) -> LinearLayer | str:
    """Read a Conv, Gemm or MatMul as a linear layer.

    Args:
        node: The node.
        integer: Whether it is to run on integers, which not every shape should.
        native: Whether operators of our own may run it.

    Returns:
        The layer, or the reason why it cannot be one.
    """
    index = _weight_index(node)
    source = None if index is None else node.inputs[1 - index]
    if index is None or source is None:
        return "its weight is computed at run time"
    if not is_float32(source):
        return "its input is not float32 (convert the model to float32 first)"
    weight = constant(node.inputs[index])
    narrow = integer and not (native and has_native_kernel(node))
    reason = _unsuitable(node, weight, index, integer=integer, narrow=narrow)
    wide = weight is not None and not reason and weight.size > MOST_INPUTS * weight.shape[out_axis(node, index)]
    if wide and integer:
        reason = f"more than {MOST_INPUTS} inputs per feature: sums of their codes could overflow 32 bits"
    if weight is None or reason:
        return reason or "its weight is computed at run time"
    layout = WeightLayout(out_axis(node, index), weight.shape)
    bias = _bias(node, index)
    if bias is not None:
        values = constant(bias)
        if values is None or values.dtype != np.float32 or values.size != layout.shape[layout.out_axis]:
            return "its bias is not a constant with one float32 per output"
    return LinearLayer(
        name_of(node),
        node.op_type,
        str(source.name),
        str(node.inputs[index].name),  # type: ignore[union-attr]
        None if bias is None else str(bias.name),
        layout,
        _unfold(node, weight) if "Conv" in node.op_type else Unfold(columns=index == 0),
        index,
    )


def _weight_index(node: ir.Node) -> int | None:
    """Return the index of the input that is the constant weight; None if there is none."""
    order = (1, 0) if node.op_type == "MatMul" else (1,)
    return next((i for i in order if len(node.inputs) > i and constant(node.inputs[i]) is not None), None)


def _bias(node: ir.Node, weight_index: int) -> ir.Value | None:
    if node.op_type == "MatMul":
        return _added_constant(node) if weight_index == 1 else None
    return node.inputs[2] if len(node.inputs) > 2 else None


def out_axis(node: ir.Node, weight_index: int) -> int:
    """Return the axis of a layer's weight that its output features are along."""
    if node.op_type == "MatMul":
        return 1 if weight_index == 1 else 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _unfold(node: ir.Node, weight: NDArray[Any]) -> Unfold:
    """Return the geometry of a convolution with ONNX's defaults filled in."""
    kernel = tuple(weight.shape[2:])
    ones, attributes = (1,) * len(kernel), node.attributes
    return Unfold(
        kernel,
        tuple(attributes.get_ints("strides", ones)),
        tuple(attributes.get_ints("dilations", ones)),
        tuple(attributes.get_ints("pads", (0,) * 2 * len(kernel))),
        cast("AutoPad", attributes.get_string("auto_pad", "NOTSET")),
        attributes.get_int("group", 1),
        transposed=node.op_type == "ConvTranspose",
        extra=tuple(attributes.get_ints("output_padding", ())),
    )


def bias_add(product: ir.Node) -> ir.Node | None:
    """Return the Add, or Sum of two, that alone reads a product; None if there is none."""
    uses = product.outputs[0].uses()
    if len(uses) != 1 or product.outputs[0].is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if node.op_type in ("Add", "Sum") and not node.domain and len(node.inputs) == 2 else None


def _added_constant(product: ir.Node) -> ir.Value | None:
    """Return the bias behind a MatMul, a float32 vector over the output features; None if there is none."""
    add = bias_add(product)
    for value in add.inputs if add is not None else ():
        values = constant(value)
        if values is not None and values.dtype == np.float32 and values.ndim == 1 and values.size > 1:
            return value
    return None


def has_native_kernel(node: ir.Node) -> bool:
    """Whether domain ai.ptq has a kernel for a convolution of images, depthwise or narrow, on any processor."""
    weight = node.inputs[1]
    group = node.attributes.get_int("group", 1)
    shape = [] if weight is None or weight.shape is None else [n for n in weight.shape if isinstance(n, int)]
    if len(shape) != 4 or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    features, channels, height, width = shape
    if group == 1:
        neighbors = node.attributes.get_ints("dilations", (1, 1))[-1] == 1
        return channels <= 4 and height * width > 1 and width <= WIDEST_IMAGE_KERNEL and neighbors
    if channels == 1 and features == group:
        return (height + 3) // 4 * width <= MOST_TAPS
    per_group = features // group
    return channels % 4 == 0 and all(_most_groups(features, per_group, n) * channels <= 4 * n for n in LANES)


def _most_groups(features: int, per_group: int, lanes: int) -> int:
    """Count the groups that one vector of features belongs to, at most; of their channels it reads four per lane."""
    starts = range(0, features, lanes)
    return max((min(first + lanes, features) - 1) // per_group - first // per_group + 1 for first in starts)


def _is_narrow_group(node: ir.Node, weight: NDArray[Any]) -> bool:
    """Whether groups are too small to fill an integer kernel; depthwise ones have a kernel of their own."""
    return node.attributes.get_int("group", 1) > 1 and 1 < weight.shape[1] < NARROW_GROUP


def _unsuitable(node: ir.Node, weight: NDArray[Any] | None, index: int, *, integer: bool, narrow: bool) -> str | None:
    """Return the reason why a weight cannot become codes, None if it can; `narrow` if small groups count."""
    if weight is None or weight.dtype != np.float32 or not weight.size:
        return "its weight is empty or not float32"
    if node.op_type == "ConvTranspose":
        return _unsuitable_transposed(node)
    if node.op_type == "Conv":
        if narrow and _is_narrow_group(node, weight):
            return f"{weight.shape[1]} channels per group: the integer kernel is slower than the float one"
        return None
    if weight.ndim != 2:
        return f"its weight has {weight.ndim} axes; integer kernels want 2"
    if integer and index == 0:
        return "its weight is on the left; integer kernels want it on the right"
    attributes = node.attributes
    plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0
    if attributes.get_int("transA", 0) or not plain:
        return "transA, alpha or beta differ from what the integer kernel computes"
    return None


def _unsuitable_transposed(node: ir.Node) -> str | None:
    attributes = node.attributes
    if attributes.get_int("group", 1) != 1:
        return "a transposed convolution in groups"
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        return "a transposed convolution whose pads are not given"
    return None
