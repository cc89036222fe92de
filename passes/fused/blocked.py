"""Convolutions and pools on channels in blocks, the layout in which onnxruntime saves a graph of its highest level.

Weights lie in the order of the machine's vectors; a file is of use only where those are as long as where it was made.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

from ptq.files.scratch import scratch_folder
from ptq.passes.fused.products import convolved
from ptq.passes.fused.writer import Outputs, Writer
from ptq.passes.linear import constant, name_of

PROBE = """<ir_version: 8, opset_import: ["" : 13]>
probe (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { y = Conv (x, w) }"""

LAST = [0, 2, 3, 1]
"""Order of axes with channels behind."""

DOMAIN = "com.microsoft.nchwc"
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")


@functools.cache
def block_size() -> int:
    """Return how many channels this machine's onnxruntime puts into a block; 1 if it has no blocks."""
    proto = onnx.parser.parse_model(PROBE)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w"))
    options = SessionOptions()
    options.graph_optimization_level, options.log_severity_level = GraphOptimizationLevel.ORT_ENABLE_ALL, 4
    with scratch_folder() as folder:
        options.optimized_model_filepath = str(Path(folder) / "m.onnx")
        InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        saved = onnx.load(options.optimized_model_filepath)
    return max((tensor.dims[0] for tensor in saved.graph.initializer if len(tensor.dims) == 4), default=1)


def reorder_input(w: Writer) -> Outputs:
    """Write nothing, or a transposition of images with channels behind."""
    source = w.input(0)
    return [w.op("Transpose", source, perm=[0, 3, 1, 2]) if is_channels_last(w.node) else source]


def reorder_output(w: Writer) -> Outputs:
    """Write nothing, or a transposition; the layers before have no more channels than are asked for here."""
    source = w.input(0)
    return [w.op("Transpose", source, perm=LAST) if is_channels_last(w.node) else source]


def blocked_pool(w: Writer) -> Outputs:
    """Write the standard operator of the same name."""
    return [w.op(w.node.op_type, *w.node.inputs, **{name: each.value for name, each in w.node.attributes.items()})]


def blocked_upsample(w: Writer) -> Outputs:
    """Write Resize by the same whole factors."""
    attributes = w.node.attributes
    mode = attributes.get_string("mode", "nearest")
    how = {"mode": mode, "coordinate_transformation_mode": "asymmetric"} | (
        {"nearest_mode": "floor"} if mode == "nearest" else {}
    )
    if "coordinate_transformation_mode" in attributes:
        how["coordinate_transformation_mode"] = attributes.get_string("coordinate_transformation_mode", "")
    return [w.op("Resize", w.input(0), None, w.constant(attributes.get_ints("scales", ()), "scales"), **how)]


def blocked_conv(w: Writer) -> Outputs | None:
    """Write the convolution with its weight in the plain order, without the channels that fill blocks up.

    None where it is not known how many channels these are.
    """
    plain, bias = plain_weight(w.node), constant(w.input(2))
    source, features = w.input(0), w.channels.get(name_of(w.node))
    if plain is None or features is None or source is None or (w.input(2) is not None and bias is None):
        return None
    plain, group = plain[:features], w.node.attributes.get_int("group", 1)
    if is_depthwise(w.node):
        group = features
    elif group == 1:  # an image's few channels are not in blocks
        plain = plain[:, : w.channels.get(str(source.name), plain.shape[1])]
    own_bias = None if bias is None else w.constant(bias[:features], "bias")
    outcome = convolved(w, source, w.constant(plain, "weight"), own_bias, group=group)
    return None if outcome is None else [outcome]


def is_channels_last(node: ir.Node) -> bool:
    """Whether a change of layout has images with channels behind on its other side."""
    return bool(node.attributes.get_int("channels_last", 0))


def is_depthwise(node: ir.Node) -> bool:
    """Whether a blocked convolution has a group for each channel."""
    weight = constant(node.inputs[1])
    return weight is not None and weight.shape[:2] == (node.attributes.get_int("group", 1), 1)


def plain_weight(node: ir.Node) -> NDArray[np.float32] | None:
    """Return the weight of a blocked convolution in the plain order; None if it is none of this machine's."""
    weight, size = constant(node.inputs[1]), block_size()
    if weight is None or weight.ndim != 4 or weight.shape[0] % size or size == 1:
        return None
    features, channels, *kernel = weight.shape
    if channels % size:  # depthwise, or of an image that is not in blocks
        ordered = weight.reshape(features // size, channels, *kernel, size).transpose(0, 4, 1, 2, 3)
    else:
        blocks = (features // size, channels // size, *kernel, size, size)
        ordered = weight.reshape(blocks).transpose(0, 5, 1, 4, 2, 3)
    return np.ascontiguousarray(ordered.reshape(weight.shape))
