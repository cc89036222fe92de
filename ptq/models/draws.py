"""Random operators with fixed draws in their place, so that two models, or two runs of one, draw the same numbers.

The draws depend on the name of the result alone. The model that is delivered keeps its random operators.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ptq.models.source import INLINE_BYTES, weight_bytes

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators that draw whenever they run; Dropout does in training only."""

WORDS = (b"Random", b"Multinomial", b"Bernoulli", b"Dropout")
COUNT = 1 << 16
"""Numbers in a table of draws, which long results repeat."""

OPSET = 9
"""Oldest operator set with everything that fixed draws are made of."""


def random_nodes(model: ir.Model) -> list[ir.Node]:
    """List the nodes of a model that draw random numbers, those in bodies and local functions included."""
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    return [node for node in nodes if _draws(node)]


def lasting_name(value: ir.Value) -> str:
    """Return the name by which a value is known in every form of a model: that of the output that it gives, if any."""
    maker = value.producer()
    for use in value.uses():
        is_copied = use.node.op_type == "Identity" and use.node.outputs[0].is_graph_output()
        if is_copied and (maker is None or use.node.graph is maker.graph):  # not what a branch gives
            return str(use.node.outputs[0].name)
    return str(value.name)


def fixed_form(form: str | Path | bytes) -> str | Path | bytes | ir.Model:
    """Return a model with fixed draws, or the form itself if it draws nothing, is no model, or too large for memory."""
    if not _names_random(form):
        return form
    try:
        data = form if isinstance(form, bytes) else Path(form).read_bytes()
        proto = onnx.ModelProto.FromString(data)
        model = ir.from_proto(proto)
        if not isinstance(form, bytes):
            ir.external_data.set_base_dir(model.graph, Path(form).absolute().parent)
            if random_nodes(model) and weight_bytes(model) <= INLINE_BYTES:
                ir.external_data.load_to_model(model)
    except Exception:  # of several types; onnxruntime will say what is wrong with it
        return form
    fixed = with_fixed_draws(model)
    return form if fixed is model else fixed


def with_fixed_draws(model: ir.Model) -> ir.Model:
    """Return a copy of a model with fixed draws, or the model itself if it draws nothing.

    Before: y = RandomNormalLike(x)
    After:  y = table[place + 0 .. size of x], in the shape of x
    """
    if not random_nodes(model) or model.opset_imports.get("", OPSET) < OPSET:
        return model
    copy = model.clone()
    if any(_draws(node) for function in copy.functions.values() for node in function.all_nodes()):
        common.InlinePass(lambda function: any(map(_draws, function.all_nodes())))(copy)
    tables = _Tables(copy.graph)
    for node in random_nodes(copy):
        _Fixing(tables, node).replace()
    return copy


def _names_random(form: str | Path | bytes) -> bool:
    """Whether a serialized model has a word in it that random operators are called by; finding out costs little."""
    if isinstance(form, bytes):
        return any(word in form for word in WORDS)
    try:
        with Path(form).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(data.find(word) >= 0 for word in WORDS)
    except (OSError, ValueError):  # nothing there, or nothing in it
        return False


def _draws(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return node.op_type in RANDOM
    mode = ir.convenience.get_const_tensor(node.inputs[2])
    return mode is None or bool(mode.numpy())


@dataclass
class _Tables:
    """Tables of draws in the main graph, written once they are needed."""

    graph: ir.Graph
    values: dict[str, ir.Value] = field(default_factory=dict)

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Write a constant; equal ones are stored once."""
        key = f"ptq_draws_{zlib.crc32(array.tobytes()):08x}_{array.dtype}_{'x'.join(map(str, array.shape))}"
        if key not in self.values:
            value = ir.Value(name=key, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=key))
            value.dtype = ir.DataType.from_numpy(array.dtype)
            self.graph.register_initializer(value)
            self.values[key] = value
        return self.values[key]

    def draws(self, *, normal: bool) -> ir.Value:
        """Write a table of draws: standard normal ones, or even ones between 0 and 1."""
        generator = np.random.default_rng(0)
        array = generator.standard_normal(COUNT) if normal else generator.uniform(1e-6, 1 - 1e-6, COUNT)
        return self.constant(array.astype(np.float32))


class _Fixing:
    """A random node, and those that take its place."""

    def __init__(self, tables: _Tables, node: ir.Node) -> None:
        self._tables, self._node, self._made = tables, node, list[ir.Node]()
        self._name = next((lasting_name(value) for value in node.outputs if value.name), "")

    def replace(self) -> None:
        """Put nodes with fixed draws in the place of the random one."""
        node, kind = self._node, self._node.op_type
        rules: dict[str, Callable[[], ir.Value]] = {
            "Multinomial": self._multinomial, "Bernoulli": self._bernoulli, "Dropout": self._dropout
        }  # fmt: skip
        result = rules.get(kind, self._numbers)()
        graph = node.graph
        assert graph is not None  # it was found in one
        graph.insert_before(node, self._made)
        out = node.outputs[0]
        result.name, out.name, result.type, result.shape = out.name, None, result.type or out.type, out.shape
        ir.convenience.replace_all_uses_with(out, result, replace_graph_outputs=True)
        graph.remove(node, safe=True)

    def _numbers(self) -> ir.Value:
        node, normal = self._node, "Normal" in self._node.op_type
        if node.op_type.endswith("Like"):
            shape = self._op("Shape", node.inputs[0])
        else:
            shape = self._constant(np.array(node.attributes.get_ints("shape", ()), np.int64))
        drawn = self._draws(shape, normal=normal)
        if normal:
            factor, offset = (node.attributes.get_float(key, value) for key, value in (("scale", 1.0), ("mean", 0.0)))
        else:
            high, offset = (node.attributes.get_float(key, value) for key, value in (("high", 1.0), ("low", 0.0)))
            factor = high - offset
        scaled = self._op("Mul", drawn, self._constant(np.array(factor, np.float32)))
        moved = self._op("Add", scaled, self._constant(np.array(offset, np.float32)))
        return self._cast(moved, self._dtype())

    def _multinomial(self) -> ir.Value:
        """Take the largest of logits with Gumbel noise on them, which is a draw from what they stand for."""
        logits = self._op("Cast", self._node.inputs[0], to=1)
        apart = self._op("Reshape", logits, self._constant(np.array([0, 1, -1], np.int64)))
        count = self._node.attributes.get_int("sample_size", 1)
        spread = self._op("Expand", apart, self._constant(np.array([1, count, 1], np.int64)))
        even = self._draws(self._op("Shape", spread), normal=False)
        noise = self._op("Neg", self._op("Log", self._op("Neg", self._op("Log", even))))
        best = self._op("ArgMax", self._op("Add", spread, noise), axis=2, keepdims=0)
        return self._cast(best, self._node.attributes.get_int("dtype", int(ir.DataType.INT32)))

    def _bernoulli(self) -> ir.Value:
        share = self._op("Cast", self._node.inputs[0], to=1)
        even = self._draws(self._op("Shape", share), normal=False)
        return self._cast(self._op("Greater", even, share), self._dtype())  # as onnxruntime draws

    def _dropout(self) -> ir.Value:
        source, ratio, training = (*self._node.inputs, None)[:3]
        ratio = self._constant(np.array(0.5, np.float32)) if ratio is None else self._op("Cast", ratio, to=1)
        even = self._draws(self._op("Shape", source), normal=False)
        kept = self._op("Or", self._op("Not", self._op("Less", even, ratio)), self._op("Not", training))
        rest = self._op("Sub", self._constant(np.array(1, np.float32)), ratio)
        wide = self._op("Cast", source, to=1)
        scaled = self._op("Where", training, self._op("Div", wide, rest), wide)
        if len(self._node.outputs) > 1 and self._node.outputs[1].name:
            mask = self._node.outputs[1]
            name, mask.name = mask.name, None
            ir.convenience.replace_all_uses_with(mask, kept, replace_graph_outputs=True)
            kept.name = name
        dropped = self._op("Where", kept, scaled, self._constant(np.array(0, np.float32)))
        return self._cast(dropped, int(source.dtype) if source is not None and source.dtype is not None else 1)

    def _draws(self, shape: ir.Value, *, normal: bool) -> ir.Value:
        """Read as many draws as a shape asks for, from a place that the name tells on, over and over."""
        shape.dtype = ir.DataType.INT64
        one = self._constant(np.array([1], np.int64))
        count = self._op("ReduceProd", self._op("Concat", one, shape, axis=0), keepdims=1)
        ones = self._op("ConstantOfShape", count, value=ir.tensor(np.array([1], np.int64)))
        places = self._op("Reshape", self._op("NonZero", ones), self._constant(np.array([-1], np.int64)))
        begin, length = zlib.crc32(self._name.encode()) % COUNT, self._constant(np.array(COUNT, np.int64))
        later = self._op("Add", places, self._constant(np.array(begin, np.int64)))
        whole = self._op("Mul", self._op("Div", later, length), length)
        drawn = self._op("Gather", self._tables.draws(normal=normal), self._op("Sub", later, whole))
        return self._op("Reshape", drawn, shape)

    def _dtype(self) -> int:
        source = self._node.inputs[0] if self._node.inputs else None
        known = int(source.dtype) if source is not None and source.dtype is not None else int(ir.DataType.FLOAT)
        return self._node.attributes.get_int("dtype", known)

    def _cast(self, value: ir.Value, dtype: int) -> ir.Value:
        result = self._op("Cast", value, to=dtype)
        result.dtype = ir.DataType(dtype)
        return result

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        return self._tables.constant(array)

    def _op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Write a node; its result is named after the random node's."""
        node = ir.node(op_type, list(inputs), attributes, name="")
        node.outputs[0].name = f"{self._name}?draw{len(self._made)}"
        self._made.append(node)
        return node.outputs[0]
