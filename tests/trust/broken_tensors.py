"""Weights whose sizes, types or numbers cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.builders import random
from tests.trust.cases import WEIGHTS, Stage, broken, each, either, proto_of, small_net, tensor_named

Change = Callable[[onnx.TensorProto], object]


def _dims(*dims: int) -> Change:
    def change(tensor: onnx.TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def _type(kind: int) -> Change:
    return lambda tensor: setattr(tensor, "data_type", kind)


def _raw(change: Callable[[bytes], bytes]) -> Change:
    return lambda tensor: setattr(tensor, "raw_data", change(tensor.raw_data))


def _floats(count: int, *, keep_raw: bool = False) -> Change:
    def change(tensor: onnx.TensorProto) -> None:
        if not keep_raw:
            tensor.ClearField("raw_data")
        tensor.float_data.extend([0.5] * count)

    return change


def _as(array: np.ndarray) -> Change:
    def change(tensor: onnx.TensorProto) -> None:
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


def _first(value: float) -> Change:
    def change(tensor: onnx.TensorProto) -> None:
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[0] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change


CHANGES: dict[str, Change] = {
    "2^40 rows": _dims(2**40, 3, 3, 3),
    "2^31 rows": _dims(2**31, 3, 3, 3),
    "2^62 rows, which overflows": _dims(2**62, 3, 3, 3),
    "2^32 x 2^32, which is 0 in 64 bits": _dims(2**32, 2**32),
    "dims whose product overflows to the right size": _dims(2**63 - 1, 2**63 - 1, 2, 2),
    "a negative extent": _dims(-8, 3, 3, 3),
    "two negative extents": _dims(-8, -3, 3, 3),
    "-2^63 rows": _dims(-(2**63), 3, 3, 3),
    "no rows": _dims(0, 3, 3, 3),
    "another rank": _dims(216),
    "300 dims": _dims(*[1] * 297, 8, 3, 9),
    "a channel too many": _as(random((8, 4, 3, 3), 1)),
    "raw data too short": _raw(lambda data: data[:-4]),
    "raw data too long": _raw(lambda data: data + bytes(4)),
    "raw data twice as long": _raw(lambda data: data * 2),
    "raw data that ends inside a number": _raw(lambda data: data[:-3]),
    "no data at all": lambda tensor: tensor.ClearField("raw_data"),
    "raw data and floats": _floats(216, keep_raw=True),
    "too few floats": _floats(215),
    "too many floats": _floats(217),
    "floats called whole numbers": lambda tensor: (_floats(216)(tensor), _type(6)(tensor)),
    "no type": _type(0),
    "an unknown type": _type(99),
    "a negative type": _type(-1),
    "a type of half the width": _type(10),
    "a type of twice the width": _type(11),
    "text": lambda tensor: (
        tensor.ClearField("raw_data"),
        _type(8)(tensor),
        tensor.string_data.extend([b"a"] * 216),
    ),
    "raw data called text": _type(8),
    "whole numbers": _as(np.ones((8, 3, 3, 3), np.int32)),
    "doubles among floats": _as(np.ones((8, 3, 3, 3), np.float64)),
    "no name": lambda tensor: tensor.ClearField("name"),
    "NaN": _first(np.nan),
    "infinity": _first(np.inf),
    "minus infinity": _first(-np.inf),
}


@each(lambda name: broken(f"weight: {name}", "conv_weight", "m.onnx"), CHANGES)
def changed_weight(stage: Stage, change: Change) -> None:
    stage.put_works()
    model = small_net()
    change(tensor_named(model, "conv_weight"))
    stage.put(model)


@each(
    lambda name: broken(f"numbers: {name}", name.split()[-1]),
    {
        "NaN in gemm_weight": ("gemm_weight", np.nan),
        "infinity in gemm_weight": ("gemm_weight", np.inf),
        "NaN in gemm_bias": ("gemm_bias", np.nan),
        "infinity in conv_bias": ("conv_bias", np.inf),
        "minus infinity in gemm_bias": ("gemm_bias", -np.inf),
    },
)
def not_finite(stage: Stage, given: tuple[str, float]) -> None:
    stage.put_works()
    name, value = given
    model = small_net()
    _first(value)(tensor_named(model, name))
    stage.put(model)


@broken("numbers: variance -1 in a BatchNormalization", "variance", "'n'", "'y'")
def negative_variance(stage: Stage) -> None:
    stage.put_works()
    text = """net (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) {
        a = Conv (x, conv_weight)
        n = BatchNormalization (a, ones, ones, ones, variance)
        y = Relu (n)
    }"""
    ones = np.ones(8, np.float32)
    stage.put(proto_of(text, {"conv_weight": WEIGHTS["conv_weight"], "ones": ones, "variance": -ones}))


@each(
    lambda name: broken(f"numbers: {name}", "'a'", "'r'"),
    {"overflow inside": 3e38, "overflow inside by weights of 1e30 and more": 1e30},
)
def overflow(stage: Stage, size: float) -> None:
    stage.put_works()
    text = """net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        a = Conv (x, conv_weight)
        r = Mul (a, a)
        g = GlobalAveragePool (r)
        f = Flatten (g)
        y = Gemm <transB = 1> (f, gemm_weight)
    }"""
    wide = np.full((8, 3, 3, 3), size, np.float32)
    stage.put(proto_of(text, {"conv_weight": wide, "gemm_weight": WEIGHTS["gemm_weight"]}))


@broken("numbers: a division by zero inside", "'d'", "'r'")
def division_by_zero(stage: Stage) -> None:
    stage.put_works()
    text = """net (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) {
        r = Relu (x)
        n = Neg (r)
        s = Relu (n)
        d = Div (r, s)
        y = Conv (d, conv_weight)
    }"""
    stage.put(proto_of(text, {"conv_weight": WEIGHTS["conv_weight"]}))


@each(
    lambda name: broken(f"constant: {name}", "m.onnx", "constant_weight"),
    {
        "raw data too short": _raw(lambda data: data[:-4]),
        "raw data too long": _raw(lambda data: data + bytes(4)),
        "2^40 rows": _dims(2**40, 3, 3, 3),
        "an unknown type": _type(99),
        "NaN": _first(np.nan),
    },
)
def constant(stage: Stage, change: Change) -> None:
    stage.put_works()
    text = """net (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) {
        constant_weight = Constant <value = float {0}> ()
        y = Conv (x, constant_weight)
    }"""
    model = proto_of(text, {})
    model.graph.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(WEIGHTS["conv_weight"], "constant"))
    change(model.graph.node[0].attribute[0].t)
    stage.put(model)


def _sparse(values: np.ndarray, indices: np.ndarray, dims: tuple[int, ...]) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        values=onnx.numpy_helper.from_array(values, "conv_weight"),
        indices=onnx.numpy_helper.from_array(indices),
        dims=dims,
    )


@each(
    lambda name: broken(f"sparse weight: {name}", "conv_weight", "m.onnx"),
    {
        "an index outside": (np.ones(1, np.float32), np.array([216]), (8, 3, 3, 3)),
        "a negative index": (np.ones(1, np.float32), np.array([-1]), (8, 3, 3, 3)),
        "2^40 rows": (np.ones(1, np.float32), np.array([5]), (2**40, 3, 3, 3)),
        "more values than indices": (np.ones(2, np.float32), np.array([5]), (8, 3, 3, 3)),
    },
)
def sparse(stage: Stage, given: tuple[np.ndarray, np.ndarray, tuple[int, ...]]) -> None:
    stage.put_works()
    model = small_net()
    model.graph.initializer.remove(tensor_named(model, "conv_weight"))
    model.graph.sparse_initializer.append(_sparse(*given))
    stage.put(model)


@either("weight: a segment", "conv_weight")
def segment(stage: Stage) -> None:
    stage.put_works()
    model = small_net()
    tensor_named(model, "conv_weight").segment.end = 100
    stage.put(model)


@either("weight: 4 bits per number and a byte too many", "m.onnx", "nibbles")
def nibbles(stage: Stage) -> None:
    stage.put_works()
    model = small_net(21, 10)
    model.graph.initializer.add(name="nibbles", data_type=onnx.TensorProto.INT4, dims=[3], raw_data=bytes(3))
    stage.put(model)
