"""Lowering of operator sets that are newer than onnxruntime's integer operators."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ptq.core.errors import UnsupportedModelError
from ptq.models.foreign import is_foreign
from ptq.models.sessions import RunError, session_of
from ptq.passes.normalize import INT4_OPSET, convert

PROBE = """probe (float[1, 1, 2, 2] x, uint8[1, 1, 2, 2] w, float scale, uint8 zero) => (float[1, 1, 2, 2] y) {
    codes = QuantizeLinear (x, scale, zero)
    more = QLinearConv <pads = [0, 0, 1, 1]> (codes, scale, zero, w, scale, zero, scale, zero)
    decoded = DequantizeLinear (more, scale, zero)
    whole, step, start = DynamicQuantizeLinear (decoded)
    sums = MatMulInteger (whole, w, start)
    wide = Cast <to = 1> (sums)
    y = Mul (wide, step)
}"""
"""The operators between floats and integers that are written into models."""


@dataclass(frozen=True)
class LowerOpset(ir.passes.InPlacePass):
    """Write a model in the newest operator set that onnxruntime can quantize.

    Preserves float outputs: yes, exactly where no operator changed since; within 1e-5 where the converter had to help.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name the older set if all operators mean the same there, otherwise run ONNX's version converter.

        Raises:
            UnsupportedModelError: The converter does not know how an operator was said before.
        """
        opset = model.opset_imports.get("", 0)
        newest = newest_quantizable(opset)
        if newest == opset:
            return ir.passes.PassResult(model, False)
        if all(_is_same(node, opset, newest) for node in model.graph.all_nodes()):
            model.opset_imports[""] = newest
            return ir.passes.PassResult(model, True)
        try:
            convert(model, newest)
        except Exception as error:  # the converter raises RuntimeError and pybind types alike
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedModelError(
                f"the model has opset {opset}; this onnxruntime quantizes up to {newest} and the ONNX version "
                f"converter fails: {reason}; export the model again with opset {newest} or older"
            ) from error
        return ir.passes.PassResult(model, True)


def newest_quantizable(opset: int) -> int:
    """Find the newest operator set up to this one in which onnxruntime has the operators of quantized models.

    It is asked, as no list would know its next version; not below 21, which every version since 1.27 has.
    """
    known = min(opset, onnx.defs.onnx_opset_version())
    return next((each for each in range(known, INT4_OPSET, -1) if _is_quantizable(each)), min(opset, INT4_OPSET))


@functools.cache
def _is_quantizable(opset: int) -> bool:
    probe = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{PROBE}')
    try:
        with session_of(probe.SerializeToString(), optimization="none"):
            return True
    except RunError:
        return False


def _is_same(node: ir.Node, opset: int, older: int) -> bool:
    """Whether both sets hold one version of a node's operator; those that are none of ONNX's have their own."""
    if node.domain or is_foreign("", node.op_type, opset):
        return True
    return bool(onnx.defs.get_schema(node.op_type, opset).since_version <= older)
