"""What a case is, and the stage it plays on: folders of its own, with a model and data that work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from tests.builders import random

Arrays = Mapping[str, Any]  # arrays and numpy's single numbers
Expected = Literal["error", "works", "either"]
Value = TypeVar("Value")

NET = """net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, conv_weight, conv_bias)
    r = Relu (a)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, gemm_weight, gemm_bias)
}"""
WEIGHTS: Arrays = {
    "conv_weight": random((8, 3, 3, 3), 1),
    "conv_bias": random((8,), 2),
    "gemm_weight": random((5, 8), 3),
    "gemm_bias": random((5,), 4),
}
SAMPLES = 12


def proto_of(text: str, weights: Arrays, opset: int = 17, ir_version: int = 9) -> onnx.ModelProto:
    """A model from the textual form of its graph (and functions); the weights become initializers."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "local" : 1]>\n{text}')
    if not model.functions:
        del model.opset_import[1]
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def small_net(opset: int = 17, ir_version: int = 9) -> onnx.ModelProto:
    """A convolution and a Gemm: the model that every case spoils in its own way."""
    return proto_of(NET, WEIGHTS, opset, ir_version)


def half_a_library() -> bytes:
    """The beginning of a shared library: whatever process loads it crashes."""
    whole = Path(ml_dtypes._ml_dtypes_ext.__file__).read_bytes()
    return whole[: len(whole) // 2]


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights that are inputs as well, as all were up to IR 3."""
    for tensor in model.graph.initializer:
        value = model.graph.input.add(name=tensor.name)
        value.type.tensor_type.elem_type = tensor.data_type
        for extent in tensor.dims:
            value.type.tensor_type.shape.dim.add(dim_value=extent)
    return model


def tensor_named(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """An initializer."""
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


@dataclass
class Stage:
    """The folder of one case and what is asked of the command line.

    Attributes:
        root: The case's folder; only what is written to `output` may change in it.
        model: The float model.
        data: The calibration set; None leaves the option out.
        output: Where the quantized model is to go.
        reference: What the output is compared with, if not `model`.
        options: More arguments.
        limits: Resource limits of the process: "fsize".
        feeds: Samples to compare on.
    """

    root: Path
    model: Path
    data: Path | None
    output: Path
    reference: Path | None = None
    options: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    feeds: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    @staticmethod
    def at(root: Path) -> Stage:
        """An empty stage."""
        for name in ("in", "out", "cwd", "temp", "elsewhere"):
            (root / name).mkdir(parents=True)
        return Stage(root, root / "in/m.onnx", root / "in/d.npz", root / "out/q.onnx")

    @property
    def inputs(self) -> Path:
        """The folder of the inputs."""
        return self.root / "in"

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        data = [] if self.data is None else ["--data", str(self.data)]
        return ["quantize", str(self.model), *data, "-o", str(self.output), *self.options]

    def put(self, model: onnx.ModelProto | bytes) -> None:
        """Write the model."""
        self.model.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())

    def put_data(self, **arrays: NDArray[Any]) -> None:
        """Write the calibration set."""
        np.savez(self.inputs / "d.npz", **arrays)  # type: ignore[arg-type]

    def put_works(self) -> None:
        """Write a model and data that work."""
        self.put_odd(small_net())

    def put_text(self, text: str, weights: Arrays, opset: int = 17, ir_version: int = 9) -> None:
        """Write a model from its text, and data that suits its inputs."""
        self.put_odd(proto_of(text, weights, opset, ir_version))

    def put_odd(self, model: onnx.ModelProto, **given: NDArray[Any]) -> None:
        """Write a model, and data that suits its inputs where none is given: shape [samples, ...]."""
        self.put(model)
        constant = {tensor.name for tensor in model.graph.initializer}
        arrays, free = {}, {}
        for index, value in enumerate(each for each in model.graph.input if each.name not in constant):
            kind = value.type.tensor_type
            dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
            free[value.name] = bool(dims) and dims[0] == 0
            shape = (SAMPLES, *(n or 8 for n in (dims[1:] if free[value.name] else dims)))
            arrays[value.name] = given.get(value.name, _numbers(shape, _dtype(kind.elem_type), index))
        self.put_data(**arrays)
        for row in range(SAMPLES):
            self.feeds.append({n: (a[row : row + 1] if free[n] else np.asarray(a[row])) for n, a in arrays.items()})


def _dtype(kind: int) -> np.dtype[Any]:
    return ir.DataType(kind).numpy()


def _numbers(shape: Sequence[int], dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    rng = np.random.default_rng(100 + seed)
    return (rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)).astype(dtype)


@dataclass(frozen=True)
class Case:
    """One input and what has to come of it.

    Attributes:
        name: What is particular about it.
        build: Writes it to a stage.
        expected: `error` is one line and exit code 2, `works` a model as good as the float one, `either` one of them.
        words: The error line has to name one of these.
        floor_db: SQNR that the output has to reach.
    """

    name: str
    build: Callable[[Stage], None]
    expected: Expected = "error"
    words: tuple[str, ...] = ("m.onnx",)
    floor_db: float = 15.0


CASES: list[Case] = []


def broken(name: str, *words: str) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Register a builder whose input has to be refused with a line that holds one of the words."""
    return _register(name, "error", words)


def odd(name: str, *, floor_db: float = 15.0) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Register a builder whose input has to work."""
    return _register(name, "works", (), floor_db)


def either(name: str, *words: str) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Register a builder whose input has to work or to be refused."""
    return _register(name, "either", words)


def _register(
    name: str, expected: Expected, words: Iterable[str], floor_db: float = 15.0
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    def add(build: Callable[[Stage], None]) -> Callable[[Stage], None]:
        CASES.append(Case(name, build, expected, tuple(words) or ("m.onnx",), floor_db))
        return build

    return add


def each(
    register: Callable[[str], Callable[[Callable[[Stage], None]], Callable[[Stage], None]]],
    variants: Mapping[str, Value],
) -> Callable[[Callable[[Stage, Value], None]], Callable[[Stage, Value], None]]:
    """Register a builder once per variant."""

    def add(build: Callable[[Stage, Value], None]) -> Callable[[Stage, Value], None]:
        for name, value in variants.items():
            register(name)(lambda stage, value=value: build(stage, value))  # type: ignore[misc]
        return build

    return add
