"""Store codes that are computed from constants, as exports of quantization-aware training leave them to the runtime."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from ptq.passes.decoding import arrays_of, constants
from ptq.passes.graph import add_initializer, fresh_value_name

CODES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32})


@dataclass(frozen=True)
class FoldCodes(ir.passes.InPlacePass):
    """Evaluate what makes codes of constants: a float weight behind QuantizeLinear becomes its bytes.

    Before: y = Conv(x, DequantizeLinear(QuantizeLinear(w, s, z), s, z))
    After:  y = Conv(x, DequantizeLinear(codes, s, z))
    Requires: constants that are initializers.
    Ensures: onnxruntime computes the same; the weight takes a quarter of its bytes.
    Preserves float outputs: yes, exactly.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the codes by what onnxruntime evaluates them to."""
        fixed = constants(model.graph)
        decoders = [node for node in model.graph if node.op_type == "DequantizeLinear" and not node.domain]
        computed = dict.fromkeys(
            value
            for node in decoders
            if (value := node.inputs[0]) is not None and value in fixed and value.producer() is not None
        )
        if not computed:
            return ir.passes.PassResult(model, False)
        changed = False
        for value, array in arrays_of(model, computed).items():
            if ir.DataType.from_numpy(array.dtype) not in CODES:
                continue
            stored = add_initializer(model.graph, fresh_value_name(model.graph, f"{value.name}_stored"), array)
            ir.convenience.replace_all_uses_with(value, stored)
            changed = True
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, changed)
