"""Kernels that onnxruntime really runs: the optimized graph, read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ptq.core.errors import InputError, PtqError, VerificationError
from ptq.files.scratch import scratch_folder
from ptq.passes.native_bodies import NATIVE_LAYERS
from ptq.runtime.opening import open_session

LINEAR_KERNELS = NATIVE_LAYERS | {
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "ConvInteger",
}
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
FREE = CONVERSIONS | {"Transpose", "Reshape", "ReorderInput", "ReorderOutput"}


@dataclass(frozen=True)
class Kernels:
    """Counts of operators in the optimized graph.

    Attributes:
        integer: Integer kernels -> count.
        num_linear: How many of them are linear layers.
        num_conversions: QuantizeLinear and DequantizeLinear that run on every inference.
        islands: Float operators between codes -> count: each costs two conversions.
        fallbacks: Linear layers that decode their weight on every run -> count: slower than float.
    """

    integer: Mapping[str, int]
    num_linear: int
    num_conversions: int
    islands: Mapping[str, int]
    fallbacks: Mapping[str, int]


def count_kernels(model: Path, custom_ops: Sequence[str | Path] = ()) -> Kernels:
    """Open a model as a user would and look at the graph that results.

    Args:
        model: Path of the quantized model.
        custom_ops: Libraries the model needs.

    Returns:
        The counts.
    """
    with scratch_folder() as folder:
        path = Path(folder) / "optimized.onnx"
        try:
            open_session(model, custom_ops=custom_ops, optimized_model_path=path)
            return _read(ir.load(path))
        except Exception as error:  # onnxruntime has no common base, and its file may be cut short
            reason = " ".join(str(error).split())[:300]
            raise _cause(model, custom_ops, folder, reason) from error


def _cause(model: Path, custom_ops: Sequence[str | Path], folder: str, reason: str) -> PtqError:
    """Tell whether the model or the disk is at fault, which onnxruntime does not; return the error to raise."""
    try:
        open_session(model, custom_ops=custom_ops)
    except Exception:
        return InputError(f"onnxruntime cannot load it: {reason}")
    full = f"cannot write the graph that onnxruntime runs to {folder}: {reason}"
    try:
        (Path(folder) / "probe").write_bytes(bytes(1 << 16))
    except OSError as error:
        full += f", {error.strerror}"
    return VerificationError(f"{full}; make room and run it again")


def _read(model: ir.Model) -> Kernels:
    integer, islands, fallbacks = Counter[str](), Counter[str](), Counter[str]()
    conversions = 0
    for node in model.graph:
        if node.op_type in CONVERSIONS:
            conversions += 1
        elif node.op_type in LINEAR_KERNELS or node.op_type.startswith("QLinear"):
            integer[node.op_type] += 1
        elif _decodes_weight(node):
            fallbacks[node.op_type] += 1
        elif _reads(node, "DequantizeLinear") and _feeds(node, "QuantizeLinear") and node.op_type not in FREE:
            islands[node.op_type] += 1
    linear = sum(count for op, count in integer.items() if op in LINEAR_KERNELS)
    return Kernels(_sorted(integer), linear, conversions, _sorted(islands), _sorted(fallbacks))


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))


def _reads(node: ir.Node, op_type: str) -> bool:
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(
        producer is not None and (producer.op_type == op_type or (_is_identity(producer) and _reads(producer, op_type)))
        for producer in producers
    )


def _is_identity(node: ir.Node) -> bool:
    """Whether a node is the one-input Sum that lowering puts before layers left in float."""
    return node.op_type == "Sum" and len(node.inputs) == 1


def _feeds(node: ir.Node, op_type: str) -> bool:
    return any(use.node.op_type == op_type for value in node.outputs for use in value.uses())


def _decodes_weight(node: ir.Node) -> bool:
    if (
        len(node.inputs) < 2
        or node.inputs[1] is None
        or not any(kind in node.op_type for kind in ("Conv", "Gemm", "MatMul"))
    ):
        return False
    decoder = node.inputs[1].producer()
    if decoder is None or decoder.op_type != "DequantizeLinear" or decoder.inputs[0] is None:
        return False
    return decoder.inputs[0].is_initializer() or decoder.inputs[0].const_value is not None
