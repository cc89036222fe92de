"""The effect of one layer's errors on the network's outputs: measured, by running the rest of the network with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.parallel import in_order
from ptq.calibration.segments import IR_VERSION, SegmentedRun
from ptq.core.layer import LinearLayer
from ptq.models.sessions import run, session_of
from ptq.passes.graph import initializer_of

Float = NDArray[np.float64]

MAX_GROUPS = 32
"""Sets of output features whose errors are tried one after the other; features of like errors share a set."""

PROBES = 2
"""Chunks of samples that are looked at."""


@dataclass(frozen=True)
class Influence:
    """Effect of a layer's weight errors on the network's outputs.

    Attributes:
        cost: Energy of the error at the network's outputs over that of the outputs, summed over outputs, that each
            feature of the layer is responsible for. Shape [out].
        positions: At how many positions the layer computes each feature, per sample.
    """

    cost: Float
    positions: int


@dataclass(frozen=True)
class LayerErrors:
    """Errors of one layer's weight, and how large they are at the layer's output.

    Attributes:
        weight: The errors. Shape [out, in].
        energy: Of what they add to the layer's output. Shape [out].
        centered: A bias takes up the mean of that.
    """

    weight: NDArray[np.float32]
    energy: Float
    centered: bool


def influence(
    model: ir.Model,
    layer: LinearLayer,
    walk: SegmentedRun,
    errors: LayerErrors,
    sizes: Sequence[int],
    custom_ops: Sequence[str | Path] = (),
) -> Influence:
    """Measure how much of the network's output each feature's weight error costs.

    Args:
        model: Prepared float model.
        layer: The layer; `walk` stands before it.
        walk: The float network on its way, its last stop the model's outputs.
        errors: Of the layer's weight.
        sizes: Samples in each chunk of the walk.
        custom_ops: Libraries the model needs.

    Returns:
        By feature.

    Cost:
        One run of the rest of the network per set of features and sample looked at.
    """
    energy = errors.energy
    order = np.argsort(-energy, kind="stable")
    sets = np.array_split(order, min(MAX_GROUPS, len(order)))
    cost = np.zeros(len(sets))
    rest, names = walk.rest(layer.name)
    axis = 1 if layer.unfold.kernel else -2 if layer.unfold.columns else -1
    wanted = tuple(str(value.name) for value in model.graph.outputs)
    with (
        session_of(_alone(model, layer), custom_ops=custom_ops) as exact,
        session_of(_alone(model, layer, layer.layout.to_tensor(errors.weight)), custom_ops=custom_ops) as error,
        nullcontext() if rest is None else session_of(rest, custom_ops=custom_ops) as behind,
    ):
        made = [] if behind is None else [value.name for value in behind.get_outputs()]
        probes = sorted({walk.num_chunks * index // PROBES for index in range(PROBES)})
        for chunk in probes:
            held = walk.held(chunk)
            output = run(exact, {layer.source: held[layer.source]})[0]
            change = run(error, {layer.source: held[layer.source]})[0]
            if errors.centered:
                others = tuple(i for i in range(change.ndim) if i != axis % change.ndim)
                change = change - change.mean(others, keepdims=True)
            fixed = {name: held[name] for name in names if name != layer.name}

            def forward(values: NDArray[Any], fixed: Mapping[str, NDArray[Any]] = fixed) -> dict[str, NDArray[Any]]:
                if behind is None:
                    return {layer.name: values}
                feed = {**fixed, layer.name: values} if layer.name in names else dict(fixed)
                return {layer.name: values} | dict(zip(made, run(behind, feed, made), strict=True))

            def changed(rows: NDArray[np.intp], output: Any = output, change: Any = change) -> dict[str, NDArray[Any]]:
                shape = [-1 if i == axis % change.ndim else 1 for i in range(change.ndim)]
                mask = np.isin(np.arange(len(energy)), rows).reshape(shape)
                return forward(np.where(mask, output + change, output))

            reference = forward(output)
            for index, result in enumerate(in_order(changed, sets, os.cpu_count() or 1)):
                cost[index] += sum(_relative(reference[name], result[name]) for name in wanted if name in result)
    by_feature = np.zeros(len(energy))
    for rows, set_cost in zip(sets, cost / len(probes), strict=True):
        by_feature[rows] = set_cost * energy[rows] / max(float(energy[rows].sum()), 1e-300)
    return Influence(by_feature, output.size // len(energy) // sizes[probes[-1]])


def _relative(reference: NDArray[Any], output: NDArray[Any]) -> float:
    if reference.dtype.kind != "f":
        return 0.0
    signal = float(np.square(reference, dtype=np.float64).sum())
    return float(np.square(output - reference, dtype=np.float64).sum()) / max(signal, 1e-300)


def _alone(model: ir.Model, layer: LinearLayer, weight: NDArray[np.float32] | None = None) -> bytes:
    """Serialize the layer's node as a model; if another weight is given, with that one and without bias."""
    node = next(ir.to_proto(node) for node in model.graph if node.outputs[0].name == layer.name)
    if weight is None:
        arrays = {name: initializer_of(model, name) for name in node.input if name and name != layer.source}
    else:
        arrays = {layer.weight: np.ascontiguousarray(weight)}
        del node.input[2:]
    initializers = [ir.to_proto(ir.tensor(array, name=name)) for name, array in arrays.items()]
    graph = onnx.GraphProto(name="layer", node=[node], initializer=initializers)
    source = ir.Value(name=layer.source, type=ir.TensorType(ir.DataType.FLOAT))
    graph.input.append(ir.to_proto(source))
    graph.output.append(onnx.ValueInfoProto(name=layer.name))
    alone = onnx.ModelProto(ir_version=max(model.ir_version, IR_VERSION), graph=graph)
    for domain, version in model.opset_imports.items():
        alone.opset_import.add(domain=domain, version=version)
    data: bytes = alone.SerializeToString()
    return data
