"""Lowering of LSTM layers to onnxruntime's operator for integer weights, which rounds its inputs at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ptq.core.encoding import IntegerWeight
from ptq.core.plan import QuantPlan
from ptq.passes._guards import take_over
from ptq.passes.graph import add_initializer
from ptq.passes.linear import name_of
from ptq.passes.placement import Placement
from ptq.passes.stored import GATES

ORT_DOMAIN, INTEGER_LSTM, LSTM_INPUTS, BYTE = "com.microsoft", "DynamicQuantizeLSTM", 8, 8


@dataclass(frozen=True)
class IntegerLstm(ir.passes.InPlacePass):
    """Write LSTMs as onnxruntime's operator for integer weights, where both weights have 8 bits and a scale per row.

    Before: LSTM(x, W, R, ...), with weights decoded from codes, as `InsertQdq` leaves them
    After:  DynamicQuantizeLSTM(x, W codes, R codes, ..., scales, zero points), codes as [directions, in, gates]
    Requires: a graph lowered with `plan` and `placement`.
    Ensures: layers that the placement leaves in float keep their float kernels.

    Attributes:
        plan: Plan that the graph was lowered with.
        placement: Placement of the graph.
    """

    plan: QuantPlan
    placement: Placement

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the LSTMs of the main graph."""
        nodes = [node for node in model.graph if node.op_type == "LSTM" and not node.domain]
        changed = [self._rewrite(model, node) for node in nodes]
        return ir.passes.PassResult(model, any(changed))

    def _rewrite(self, model: ir.Model, node: ir.Node) -> bool:
        decoded = {f"{weight.name}_decoded": weight for weight in self.placement.stored}
        names = [str(value.name) for value in node.inputs[1:3] if value is not None]
        weights = [decoded[name] for name in names if name in decoded]
        encodings = [self.plan.weights[weight.name] for weight in weights]
        integers = [encoding for encoding in encodings if isinstance(encoding, IntegerWeight)]
        if len(integers) < 2 or any(encoding.num_bits != BYTE for encoding in integers):
            return False
        by_rows = all(weight.axes == GATES for weight in weights) and name_of(node) not in self.placement.left_float
        if node.attributes.get_int("layout", 0) or not by_rows:
            return False
        parts: list[ir.Value] = []
        for role, weight, encoding in zip("WR", weights, integers, strict=True):
            codes = np.swapaxes(weight.to_tensor(encoding.codes), 1, 2)
            scale = encoding.scale.reshape(weight.shape[:2])
            name = f"{name_of(node)}_{role}"
            parts.append(add_initializer(model.graph, f"{name}_codes", codes.astype(np.int8)))
            parts.append(add_initializer(model.graph, f"{name}_scale", scale))
            parts.append(add_initializer(model.graph, f"{name}_zero", np.zeros(scale.shape, np.int8)))
        own = [*node.inputs, *[None] * (LSTM_INPUTS - len(node.inputs))]
        inputs = [own[0], parts[0], parts[3], *own[3:], parts[1], parts[2], parts[4], parts[5]]
        attributes = [value for value in node.attributes.values() if value.name != "layout"]
        made = ir.Node(ORT_DOMAIN, INTEGER_LSTM, inputs, attributes, num_outputs=len(node.outputs))
        model.graph.insert_before(node, made)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            take_over(old, new)
        model.graph.remove(node, safe=True)
        model.opset_imports[ORT_DOMAIN] = 1
        return True
