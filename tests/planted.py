"""Faults to be found: planted into quantized models, or into float models so that quantizing suffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tests.builders import model_from_text, random

FORK = """
net (float[N, 3, 16, 16] x) => (float[N, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Relu (c)
    d = Conv (s, w3)
    e = Conv <pads = [1, 1, 1, 1]> (s, w4)
    f = Relu (d)
    g = Relu (e)
    q = Concat <axis = 1> (f, g)
    h = Conv <pads = [1, 1, 1, 1], group = 16> (q, w5)
    i = Relu (h)
    p = GlobalAveragePool (i)
    o = Flatten (p)
    y = Gemm <transB = 1> (o, w6, b6)
}"""


def fork(seed: int) -> ir.Model:
    """Two branches that a Concat joins, for a depthwise convolution."""
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1), "w4": (8, 8, 3, 3)}
    shapes |= {"w5": (16, 1, 3, 3), "w6": (5, 16), "b6": (5,)}
    weights = {name: random(shape, 100 * seed + i, 0.25) for i, (name, shape) in enumerate(shapes.items())}
    return model_from_text(FORK, weights)


def change(model: ir.Model, name: str, edit: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Replace a constant."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = edit(value.const_value.numpy().copy())
    value.const_value = ir.tensor(array.astype(value.const_value.numpy().dtype), name=name)


def scaled(channels: Any, factor: float, axis: int = 0) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """An edit: some channels times a factor."""

    def edit(array: NDArray[Any]) -> NDArray[Any]:
        view = np.moveaxis(array, axis, 0)
        view[channels] = view[channels] * factor
        return array

    return edit


def wrong_scale(quantized: ir.Model, layer: str, channel: int) -> ir.Model:
    """One channel of a weight decodes to 100 times what it should."""
    model = quantized.clone()
    scale = _node(model, layer).inputs[1].producer().inputs[1]  # type: ignore[union-attr]
    assert scale is not None
    change(model, str(scale.name), scaled(channel, 100))
    return model


def clipped(quantized: ir.Model, value: str) -> ir.Model:
    """The grid of one value reaches an eighth as far as it should."""
    model = quantized.clone()
    pair = next(
        node
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0] and node.inputs[0].name == value
    )
    scale = pair.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    finer = ir.Value(name=f"{value}_eighth", const_value=ir.tensor(scale.const_value.numpy() / np.float32(8)))
    finer.const_value.name = finer.name  # type: ignore[union-attr]
    model.graph.register_initializer(finer)
    for node in (pair, *(use.node for use in pair.outputs[0].uses())):
        node.replace_input_with(1, finer)
    return model


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs and node.outputs[0].name == name)
