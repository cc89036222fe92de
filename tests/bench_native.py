"""Operators of domain ai.ptq against onnxruntime's own: one thread, processor time, in turns, medians.

python -m tests.bench_native [layers] [products] [models] [memory]

All of them if none is named; whole models need the developers' shared folder.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import OrtValue
from rich.console import Console
from rich.table import Table

import ptq
from ptq.runtime import native_path, native_status, open_session
from tests.builders import model_from_text, native_conv, native_product, random
from tests.conftest import SHARED
from tests.shared.workloads import SAMPLES, evaluator

ROUNDS, WARM_UP = 101, 10
LAYERS = {  # features, channels per group, kernel; groups, stride, size
    "depthwise 3x3, 144 channels of 56x56": ((144, 1, 3, 3), 144, 1, 56),
    "depthwise 3x3, 576 channels of 14x14": ((576, 1, 3, 3), 576, 1, 14),
    "depthwise 5x5 / 2, 96 channels of 28x28": ((96, 1, 5, 5), 96, 2, 28),
    "3x3 in 32 groups, 128 channels of 56x56": ((128, 4, 3, 3), 32, 1, 56),
    "3x3 in 8 groups, 64 channels of 56x56": ((64, 8, 3, 3), 8, 1, 56),
    "3x3 / 2 of an image, 32 features of 224x224": ((32, 3, 3, 3), 1, 2, 224),
    "7x7 / 2 of an image, 64 features of 224x224": ((64, 3, 7, 7), 1, 2, 224),
}
WITH_CENTER = {"3x3, 128 channels of 16x16": (128, 16), "3x3, 256 channels of 14x14": (256, 14)}
MODELS = ("mobilenet_vww", "squeezenet", "resnet20", "repvgg_cifar", "minilm")
PRODUCTS = ((768, 3072), (4096, 4096))
BLOCK = 128


def medians(calls: Sequence[Callable[[], Any]], rounds: int = ROUNDS, warm: int = 0) -> list[float]:
    """Median processor time of each call, taken in turns, right after `warm` more that find their weights anywhere."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(WARM_UP + rounds):
        for call, row in zip(calls, times, strict=True):
            for _ in range(warm):
                call()
            start = time.process_time()
            call()
            row.append(time.process_time() - start)
    return [float(np.median(row[WARM_UP:])) for row in times]


def layers(library: Path) -> Table:
    """Float, the operator's body in onnxruntime, and its kernel."""
    table = Table("layer", "float ms", "onnxruntime int8, x float", "native, x float", "A/A")
    for name, (shape, groups, stride, size) in LAYERS.items():
        pads, strides, channels = [shape[2] // 2] * 4, [stride] * 2, shape[1] * groups
        text = f"""
        m (float[N, {channels}, {size}, {size}] x) => (float[N, {shape[0]}, H, W] y) {{
            y = Conv <pads = {pads}, strides = {strides}, group = {groups}> (x, w, b)
        }}"""
        model = model_from_text(text, {"w": random(shape), "b": random(shape[:1])})
        plain = open_session(ir.to_proto(model).SerializeToString())
        given = {"group": groups, "shape": list(shape), "strides": strides, "dilations": [1, 1], "pads": pads}
        data, codes = native_conv({**given, "input": [1, size, size], "seed": 0, "bias": True})
        sessions = [open_session(data), open_session(data, custom_ops=(library,))]
        first = functools.partial(plain.run, None, {"x": random((1, channels, size, size))})
        base, *times, again = medians([first, *(functools.partial(s.run, None, {"x": codes}) for s in sessions), first])
        table.add_row(name, f"{base * 1e3:.3f}", *(f"{base / t:.2f}" for t in times), f"{again / base:.3f}")
    return table


def centers(library: Path) -> Table:
    """A 3x3 convolution with coarse and fine weights at its centre against onnxruntime's plain one."""
    table = Table("coarse + fine in one pass", "plain int8 ms", "two convolutions, x its time", "one pass", "A/A")
    for name, (channels, size) in WITH_CENTER.items():
        layer = {
            "group": 1, "shape": [channels, channels, 3, 3], "strides": [1, 1], "dilations": [1, 1],
            "pads": [1, 1, 1, 1], "input": [1, size, size], "seed": 0, "bias": True,
        }  # fmt: skip
        (plain, x), (summed, _) = native_conv(layer), native_conv({**layer, "center": True})
        sessions = [open_session(plain), open_session(summed), open_session(summed, custom_ops=(library,))]
        calls = [bound(session, x) for session in (*sessions, sessions[0])]
        base, *times, again = medians(calls)
        table.add_row(name, f"{base * 1e3:.3f}", *(f"{t / base:.2f}" for t in times), f"{again / base:.3f}")
    return table


def bound(session: Any, x: NDArray[Any]) -> Callable[[], Any]:
    """A run that allocates nothing: of the operator, and little else."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_ortvalue_output("y", OrtValue.ortvalue_from_numpy(session.run(None, {"x": x})[0]))
    return functools.partial(session.run_with_iobinding, binding)


def products(library: Path) -> Table:
    """Products against onnxruntime's; bits and scales are the same on both sides."""
    titles = ("M x K x N", "MatMulNBits 4 bit ms", "ours, x its speed", "int8 ms", "8 bit", "4 bit", "2 bit")
    table = Table(*titles, "2 x int8 + Sum ms", "sum of two points", "A/A")
    for inputs, features in PRODUCTS:
        base = {"N": features, "K": inputs, "table": False, "clip": None, "rows": (1,), "seed": 0}
        dynamic = native_product({**base, "op_type": "DynamicMatMulNBits", "bits": 4, "block_size": BLOCK})[0]
        native = [dynamic] + [quantized_product({**base, "bits": bits}) for bits in (8, 4, 2)]
        own = [matmul_nbits(inputs, features), qdq_product(inputs, features, 1), qdq_product(inputs, features, 2)]
        sessions = [open_session(data) for data in own] + [open_session(data, custom_ops=(library,)) for data in native]
        sessions.append(open_session(own[0]))  # a control that is not found warm by its twin
        for rows in (1, 16, 128):
            x = random((rows, inputs), 1, 1.0)
            calls = [bound(session, x) for session in sessions]
            four, eight, twice, *ours, again = medians(calls, ROUNDS if rows < 128 else ROUNDS // 4, warm=2)
            figures = [f"{four * 1e3:.3f}", f"{four / ours[0]:.2f}", f"{eight * 1e3:.3f}"]
            figures += [f"{eight / t:.2f}" for t in ours[1:]] + [f"{twice * 1e3:.3f}", f"{twice / ours[1]:.2f}"]
            table.add_row(f"{rows} x {inputs} x {features}", *figures, f"{again / four:.3f}")
    return table


def quantized_product(layer: dict[str, Any]) -> bytes:
    """Our operator behind a QuantizeLinear: float in, float out, one scale per feature."""
    model = onnx.load_from_string(native_product({**layer, "op_type": "QLinearMatMulNBitsToFloat", "block_size": 0})[0])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in model.graph.node:
        node.input[0] = "codes"
    first = onnx.NodeProto(op_type="QuantizeLinear", input=["x", "x_scale", "x_zero"], output=["codes"])
    model.graph.node.insert(0, first)
    return model.SerializeToString()


def matmul_nbits(inputs: int, features: int) -> bytes:
    """onnxruntime's product with 4-bit weights, activations rounded to 8 bits."""
    rng = np.random.default_rng(0)
    blocks = inputs // BLOCK
    codes = rng.integers(0, 256, (features, blocks, BLOCK // 2)).astype(np.uint8)
    scale = (0.01 * rng.random(features * blocks)).astype(np.float32)
    settings = f"K = {inputs}, N = {features}, bits = 4, block_size = {BLOCK}, accuracy_level = 4"
    text = f"""<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
        m (float[M, {inputs}] x) => (float[M, {features}] y) {{
            y = com.microsoft.MatMulNBits <{settings}> (x, w, s)
        }}"""
    return with_weights(text, {"w": codes, "s": scale})


def qdq_product(inputs: int, features: int, copies: int) -> bytes:
    """onnxruntime's product with 8-bit weights, or the sum of several."""
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {"xs": np.float32(0.02), "xz": np.uint8(77)}  # type: ignore[dict-item]
    steps = ["q = QuantizeLinear (x, xs, xz)", "r = DequantizeLinear (q, xs, xz)"]
    for i in range(copies):
        weights[f"w{i}"] = rng.integers(-127, 128, (inputs, features)).astype(np.int8)
        weights[f"s{i}"] = (0.001 + 0.01 * rng.random(features)).astype(np.float32)
        steps += [f"d{i} = DequantizeLinear <axis = 1> (w{i}, s{i})", f"p{i} = MatMul (r, d{i})"]
    steps.append(f"y = Sum ({', '.join(f'p{i}' for i in range(copies))})")
    body = "\n".join(steps)
    text = f"""<ir_version: 9, opset_import: ["" : 17]>
        m (float[M, {inputs}] x) => (float[M, {features}] y) {{ {body} }}"""
    return with_weights(text, weights)


def with_weights(text: str, weights: dict[str, NDArray[Any]]) -> bytes:
    """A model from text and arrays."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return bytes(model.SerializeToString())


def models(library: Path) -> Table:
    """Whole networks: float, the default target, the native one without and with the library."""
    table = Table("model", "batch", "float ms", "int8, x float", "native body, x float", "native, x float", "A/A")
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path, feed = SHARED / f"models/{name}.onnx", evaluator(SHARED).calib(name, SAMPLES[name])
            paths = quantized(name, Path(folder))
            sessions = [open_session(each) for each in (path, *paths)] + [open_session(paths[1], custom_ops=(library,))]
            for batch in (1, 32):
                part = {key: value[:batch] for key, value in feed.items()}
                calls = [functools.partial(s.run, None, part) for s in (*sessions, sessions[0])]
                base, *times, again = medians(calls, ROUNDS if batch == 1 else ROUNDS // 5)
                figures = [f"{base * 1e3:.3f}", *(f"{base / t:.2f}" for t in times), f"{again / base:.3f}"]
                table.add_row(name, str(batch), *figures)
    return table


def quantized(name: str, folder: Path) -> list[Path]:
    """A network at its defaults for two targets."""
    feed, paths = evaluator(SHARED).calib(name, SAMPLES[name]), []
    for target in ("cpu-x86", "native"):
        paths.append(folder / f"{name}.{target}.onnx")
        ptq.quantize(SHARED / f"models/{name}.onnx", feed, ptq.Recipe(target=target)).save(paths[-1])
    return paths


MEASURE = """
import sys, time
from ptq.runtime import open_session
model, library = sys.argv[1:]
size = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
open_session(EMPTY)
before, start = size(), time.process_time()
session = open_session(model, custom_ops=[library] if library else [])
print(size() - before, (time.process_time() - start) * 1e3)
"""


def memory(library: Path) -> Table:
    """What opening a session costs, each in a process of its own: peak memory above onnxruntime's, and time."""
    table = Table("model", "file MB", "float MB", "int8 MB", "native body MB", "native MB", *LOADS)
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            plain, native = quantized(name, Path(folder))
            forms = [(SHARED / f"models/{name}.onnx", ""), (plain, ""), (native, ""), (native, str(library))]
            found = [opening(path, used) for path, used in forms]
            sizes, loads = [f"{size:.1f}" for size, _ in found], [f"{load:.0f}" for _, load in found]
            table.add_row(name, f"{native.stat().st_size / 1e6:.2f}", *sizes, *loads)
    return table


LOADS = ("float load ms", "int8", "native body", "native")


def opening(model: Path, library: str) -> tuple[float, float]:
    """Medians of peak memory in MB and processor time in ms."""
    empty = model_from_text("m (float[1] x) => (float[1] y) { y = Neg (x) }", {})
    code = MEASURE.replace("EMPTY", repr(ir.to_proto(empty).SerializeToString()))
    runs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code, model, library], capture_output=True, text=True, check=True)
        runs.append([float(figure) for figure in done.stdout.split()])
    size, load = np.median(runs, axis=0)
    return float(size), float(load)


def main() -> None:
    """Print the tables that are asked for."""
    console, library = Console(width=170), native_path()
    console.print(native_status())
    if library is None:
        return
    single = {"layers": (layers, centers), "products": (products,)}
    whole = {"models": (models,), "memory": (memory,)} if SHARED.exists() else {}
    for name, tables in (single | whole).items():
        if name in (sys.argv[1:] or single | whole):
            for table in tables:
                console.print(table(library))


if __name__ == "__main__":
    main()
