"""Broken operators: whatever a hand-edited file says, onnxruntime answers with an error or an output, never a crash.

PTQ_FUZZ_SECONDS sets how long to look; `make sanitized` looks under AddressSanitizer.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import onnx

from ptq.runtime import open_session
from tests.builders import native_conv, native_lookup, native_product
from tests.runtime.test_native import LIBRARY, VARIANTS, needs_library

SECONDS = float(os.environ.get("PTQ_FUZZ_SECONDS", "3"))
NUMBERS = (
    -(1 << 62),
    -(1 << 31),
    -129,
    -1,
    0,
    1,
    2,
    3,
    7,
    15,
    16,
    17,
    64,
    255,
    1 << 16,
    (1 << 24) + 1,
    1 << 31,
    1 << 62,
)
FLOATS = (0.0, -1.0, 1e-45, 1e-38, 3e38, np.inf, -np.inf, np.nan)


def valid(rng: np.random.Generator) -> tuple[onnx.ModelProto, Any]:
    """A random operator that works, and an input."""
    seed = int(rng.integers(1 << 30))
    kind = int(rng.integers(5))
    if kind == 0:
        data, x = native_lookup(rng.integers(0, 256, 256).astype(np.uint8)), rng.integers(0, 256, (3, 50))
        return onnx.load_from_string(data), x.astype(np.uint8)
    if kind < 3:
        groups = int(rng.choice([1, 2, 8]))
        kernel = [int(rng.choice([1, 3, 5]))] * 2
        layer = {
            "group": groups, "shape": [groups * int(rng.integers(1, 9)), int(rng.choice([1, 3, 4, 8])), *kernel],
            "strides": [int(rng.integers(1, 3))] * 2, "dilations": [1, 1], "pads": [kernel[0] // 2] * 4,
            "input": [1, 7, 9], "seed": seed, "bias": bool(rng.integers(2)), "center": bool(rng.integers(2)),
        }  # fmt: skip
        data, x = native_conv(layer)
    else:
        layer = {
            "op_type": rng.choice(["DynamicMatMulNBits", "QLinearMatMulNBitsToFloat", "QLinearMatMulNBits"]).item(),
            "N": int(rng.integers(1, 40)), "K": int(rng.integers(1, 90)), "bits": int(rng.choice([2, 4, 8])),
            "block_size": int(rng.choice([0, 16, 32])), "table": bool(rng.integers(2)), "clip": (-1.0, 3.0e38),
            "rows": (int(rng.integers(0, 5)),), "seed": seed,
        }  # fmt: skip
        data, x, _ = native_product(layer)
    return onnx.load_from_string(data), x


def break_attribute(rng: np.random.Generator, node: onnx.NodeProto) -> None:
    """Another number, another count of numbers, another type, or nothing."""
    if not node.attribute:
        return
    attribute = node.attribute[int(rng.integers(len(node.attribute)))]
    number = int(rng.choice(NUMBERS))
    match int(rng.integers(5)):
        case 0:
            node.attribute.remove(attribute)
        case 1 if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = number
        case 2 if attribute.ints:
            del attribute.ints[-1]
        case 3:
            name = attribute.name
            node.attribute.remove(attribute)
            node.attribute.append(onnx.AttributeProto(name=name, type=onnx.AttributeProto.FLOAT, f=float(number)))
        case _:
            attribute.i, attribute.f = number, float(rng.choice(FLOATS))


def break_constant(rng: np.random.Generator, graph: onnx.GraphProto) -> None:
    """Another value, shape, type, less data, an empty tensor, or none at all."""
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except ValueError:  # cut short already
        return
    match int(rng.integers(6)):
        case 0 if array.dtype == np.float32:
            array = np.where(rng.random(array.shape) < 0.3, np.float32(rng.choice(FLOATS)), array).astype(np.float32)
        case 1:
            array = array.reshape(-1)[: int(rng.integers(array.size + 1))]
        case 2:
            array = np.resize(array, [int(rng.choice([0, 1, 2, 3, 16])) for _ in range(int(rng.integers(5)))])
        case 3:
            with np.errstate(invalid="ignore"):
                array = array.astype(rng.choice([np.int8, np.uint8, np.float32, np.int32, np.int64]))
        case 4:  # data shorter than the shape says
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
            return
        case _:
            info = np.iinfo(array.dtype) if array.dtype.kind in "iu" else None
            array = np.full_like(array, 1e30 if info is None else rng.choice([info.min, info.max]))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def break_model(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """One to three faults."""
    node = next(node for node in model.graph.node if node.domain == "ai.ptq")
    for _ in range(int(rng.integers(1, 4))):
        fault = int(rng.integers(8))
        if fault < 3:
            break_attribute(rng, node)
        elif fault < 7:
            break_constant(rng, model.graph)
        elif len(node.input) > 1:
            del node.input[int(rng.integers(1, len(node.input)))]


@needs_library
def test_nothing_crashes(monkeypatch: Any) -> None:
    rng = np.random.default_rng()
    end, opened, ran = time.process_time() + SECONDS, 0, 0
    while time.process_time() < end:
        monkeypatch.setenv("PTQ_KERNELS", str(rng.choice(["ref", *VARIANTS])))
        model, x = valid(rng)
        break_model(rng, model)
        opened += 1
        try:
            session = open_session(model.SerializeToString(), custom_ops=(str(LIBRARY),))
            session.run(None, {"x": x})
            ran += 1
        except Exception:  # onnxruntime's errors have no common base
            continue
    print(f"{opened} broken models, {ran} of them ran")
    assert opened > 10 * SECONDS
