"""Models without their large weights: messages for whoever reads graphs, and arrays instead of copies of messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

SMALL = 1 << 16
"""Bytes of a constant that may be a shape, an axis or a scale, which decide something; weights do not."""

PLAIN = {
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.INT32, ir.DataType.INT64,
}  # fmt: skip
"""Types whose bytes are numpy's."""

NOWHERE = "nowhere"


def message_without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Serialize a model for readers of graphs, not of numbers: copies of large models cost time and memory.

    Returns:
        The message, its large constants named as external data that is nowhere; and the constants, by name.
    """
    aside = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes > SMALL:
            aside[name] = tensor
            shape = ir.Shape(tensor.numpy().shape)
            value.const_value = ir.ExternalTensor(NOWHERE, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    try:
        return ir.to_proto(model), aside
    finally:
        for name, tensor in aside.items():
            model.graph.initializers[name].const_value = tensor


def set_weights_aside(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Take large weights out of a message, which then names them as external data that is nowhere.

    What a message has once held it keeps until it is gone itself: copy it, and let go of it.

    Returns:
        Name -> array.
    """
    aside: dict[str, NDArray[Any]] = {}
    names = [tensor.name for tensor in proto.graph.initializer]
    if len(set(names)) < len(names):
        return aside  # whoever checks the message will say so
    for tensor in proto.graph.initializer:
        if tensor.data_type not in PLAIN or not tensor.name or not tensor.HasField("raw_data"):
            continue
        data = tensor.raw_data
        if len(data) > SMALL:
            aside[tensor.name] = np.frombuffer(data, ir.DataType(tensor.data_type).numpy()).reshape(tuple(tensor.dims))
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=NOWHERE)
    return aside


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a message without its large weights; the one that is given has lost them too, but keeps their memory."""
    set_weights_aside(proto)
    return copied(proto)


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a message, which holds nothing that was taken out of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def give_weights(model: ir.Model, weights: dict[str, NDArray[Any]]) -> None:
    """Give a model the weights that `set_weights_aside` took out of its message."""
    for name, array in weights.items():
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
