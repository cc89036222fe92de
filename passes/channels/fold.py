"""Folding: knowledge of removed inputs moves into the weight and the bias of the layer that sums over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.arrays import Float
from ptq.passes.channels.links import Axis, Kept, Mask, Read, rank
from ptq.passes.channels.recurrent_links import BIAS, GATES
from ptq.passes.graph import add_initializer, fresh_name, fresh_value_name
from ptq.passes.linear import bias_add, constant


@dataclass(frozen=True)
class Told:
    """Knowledge of an axis, what the kept positions tell of each removed one: x = mix x + constants.

    Attributes:
        constants: Shape [positions].
        mix: Shape [positions, positions], columns of removed positions 0; None for constants alone.
    """

    constants: Float
    mix: Float | None = None


def fold(read: Read, removed: Mask, told: Told, kept: Kept) -> None:
    """Rewrite a layer so that it needs the removed inputs no more; they are still there.

    Args:
        read: The layer, changed in place.
        removed: Which of its inputs will go.
        told: What is known of them.
        kept: Which positions stay; new constants are made without the others.
    """
    value, weight = read.weight.value, constant(read.weight.value)
    if weight is None:
        return
    rows = np.moveaxis(weight, read.weight.axis, 0).astype(np.float64)
    if np.any(told.constants[removed]):
        _add_to_bias(read, np.tensordot(told.constants[removed], rows[removed], 1), kept)
    if told.mix is not None and np.any(told.mix[removed]):
        rows = rows + np.tensordot(told.mix[removed].T, rows[removed], 1)
        changed = np.ascontiguousarray(np.moveaxis(rows, 0, read.weight.axis), np.float32)
        value.const_value = ir.tensor(changed, name=value.name)


def _add_to_bias(read: Read, summed: Float, kept: Kept) -> None:
    """Add what constant inputs amount to: the weight summed over them, its other axes in order."""
    node, out = read.node, read.node.outputs[0]
    if node.op_type in GATES:  # [directions, gates]: the half of the bias that belongs to the input
        more = np.concatenate([summed, np.zeros_like(summed)], 1)
        _add(node, BIAS, more, np.tile(kept(Axis(out, 3)), 2 * GATES[node.op_type]))
    elif node.op_type == "MatMul":
        _add_behind(node, summed, kept)
    elif node.op_type == "Gemm":
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        if beta == 0 or len(node.inputs) < 3 or node.inputs[2] is None:  # no bias, or one that is not added
            node.resize_inputs(2)
            beta = 1.0
            node.attributes.pop("beta", None)
        _add(node, 2, alpha * summed / beta, kept(Axis(out, 1)))
    else:
        _add(node, 2, summed.reshape(len(summed), -1).sum(1), kept(Axis(out, 1)))


def _add(node: ir.Node, place: int, more: Float, stays: Mask) -> None:
    """Add to a bias; where it is not this layer's alone, or has another shape, or is missing, to one of its own."""
    graph = node.graph
    if graph is None:
        return
    value = node.inputs[place] if len(node.inputs) > place else None
    before = constant(value)
    if value is not None and before is None:
        raise RuntimeError(f"the bias of {node.name} is computed at run time")
    total: NDArray[np.float32] = (more if before is None else before + more).astype(np.float32)
    if value is not None and before is not None and len(value.uses()) == 1 and before.shape == total.shape:
        value.const_value = ir.tensor(total, name=value.name)
        return
    node.resize_inputs(max(len(node.inputs), place + 1))
    name = fresh_name(graph, f"{node.outputs[0].name}_bias")
    node.replace_input_with(place, add_initializer(graph, name, _left(total, stays)))


def _left(array: NDArray[Any], stays: Mask) -> NDArray[Any]:
    """Cut the last axis; nothing leaves an axis whose extent the model does not tell."""
    return np.compress(stays, array, -1) if len(stays) else array


def _add_behind(node: ir.Node, more: Float, kept: Kept) -> None:
    """Add to the vector that is added to a product, or add one."""
    graph, add, out = node.graph, bias_add(node), node.outputs[0]
    if graph is None:
        return
    for value in () if add is None else add.inputs:
        before = constant(value)
        if value is not None and before is not None and before.shape == more.shape and len(value.uses()) == 1:
            value.const_value = ir.tensor((before + more).astype(np.float32), name=value.name)
            return
    left = [kept(Axis(out, axis)) for axis in range(rank(out) or 0)]
    shift = _left(more, left[-1]).astype(np.float32)
    sizes = [int(mask.sum()) if len(mask) else size for mask, size in zip(left, out.shape or (), strict=True)]
    name = str(out.name)
    made = ir.Node("", "Add", [out, add_initializer(graph, fresh_name(graph, f"{name}_bias"), shift)])
    new = made.outputs[0]
    new.name, new.type, new.shape = fresh_value_name(graph, f"{name}_shifted"), out.type, ir.Shape(sizes)
    if out.is_graph_output():  # users know it by its name
        new.name, out.name = name, new.name
    ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
    made.replace_input_with(0, out)
    graph.insert_after(node, made)
