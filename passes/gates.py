"""Hard sigmoids that may run on codes: those that only products of codes read, as in hard swishes and gates."""

from __future__ import annotations

import onnx_ir as ir

from ptq.core.ramp import Ramp


def ramp_of(node: ir.Node) -> Ramp | None:
    """Return the ramp of a HardSigmoid; None for other nodes, and for ramps that 0 does not lie on."""
    if node.op_type != "HardSigmoid" or node.domain:
        return None
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return Ramp(alpha, beta) if alpha > 0.0 and 0.0 < beta < 1.0 else None


def gated(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the values that a HardSigmoid's result is multiplied by; none if something else reads it as well."""
    out = node.outputs[0]
    readers = [use.node for use in out.uses()]
    if out.is_graph_output() or any(reader.op_type != "Mul" or reader.domain for reader in readers):
        return ()
    return tuple(value for reader in readers for value in reader.inputs if value is not None and value is not out)


def is_flat_below(value: ir.Value, ramp: Ramp) -> bool:
    """Whether nothing changes when values below the foot of a ramp become the foot.

    That is so where only hard sigmoids with that ramp read a value, and products with those.
    """
    if value.is_graph_output():
        return False
    readers = {use.node for use in value.uses()}
    gates = {node.outputs[0] for node in readers if ramp_of(node) == ramp}
    return all(
        node.outputs[0] in gates or (node.op_type == "Mul" and not node.domain and bool(gates & set(node.inputs)))
        for node in readers
    )
