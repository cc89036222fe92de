"""Types and shapes of every value: by ONNX's inference, and where that gives up, by one run on a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.models.lean import message_without_weights
from ptq.models.sessions import run, session_of
from ptq.passes.unused import RemoveUnused


def annotate(model: ir.Model, feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()) -> None:
    """Give every value of the main graph an element type and, where possible, a rank.

    Symbolic inference fails on fresh exports and knows no custom operators; a run cannot fail on a model that works.

    Args:
        model: Changed in place: only types and shapes.
        feed: One sample that the model runs on.
        custom_ops: Libraries the model needs.
    """
    infer_statically(model)
    unknown = [
        value
        for node in model.graph
        for value in node.outputs
        if (value.name and value.dtype is None) or value.shape is None
    ]
    unknown = [value for value in unknown if value.name and not value.is_graph_output()]
    if not unknown:
        return
    for value, array in zip(unknown, observe(model, [str(v.name) for v in unknown], feed, custom_ops), strict=True):
        if type(array) is not np.ndarray:  # a sequence of tensors, or an optional one that is not there
            continue
        if value.dtype is None:
            value.dtype = ir.DataType.from_numpy(array.dtype)
        if value.shape is None:
            value.shape = ir.Shape([None] * array.ndim)


def observe(
    model: ir.Model, names: Sequence[str], feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()
) -> list[NDArray[Any]]:
    """Run a model on one sample and return the named inner tensors."""
    with session_of(exposed(model, names), custom_ops=custom_ops, optimization="none") as session:
        return run(session, dict(feed), names)


def output_sizes(
    model: ir.Model, names: Sequence[str], feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()
) -> dict[str, int]:
    """Count the numbers that each named value holds on one sample: by its shape, by a run where that is not fixed."""
    sizes = known_sizes(model, names)
    unknown = [name for name in names if name not in sizes]
    if unknown:
        arrays = observe(model, unknown, feed, custom_ops)
        sizes |= {name: array.size for name, array in zip(unknown, arrays, strict=True)}
    return sizes


def shapes_on(
    model: ir.Model, feed: Mapping[str, NDArray[Any]], custom_ops: Sequence[str | Path] = ()
) -> dict[str, tuple[int, ...]]:
    """Find the shapes of values on one sample: by inference, and of float32 ones by a run for what that leaves open."""
    copy = model.clone()
    values = [value for node in copy.graph for value in node.outputs if value.name]
    for value in values:
        value.shape = None
    for value in copy.graph.inputs:
        if value.name in feed:
            value.shape = ir.Shape(feed[str(value.name)].shape)
    infer_statically(copy)
    shapes = {name: np.shape(array) for name, array in feed.items()}
    shapes |= {str(value.name): shape for value in values if (shape := _extents(value)) is not None}
    floats = {value.name for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    unknown = [str(value.name) for value in values if value.name in floats and value.name not in shapes]
    if unknown:
        arrays = observe(model, unknown, feed, custom_ops)
        known = {name: array for name, array in zip(unknown, arrays, strict=True) if isinstance(array, np.ndarray)}
        shapes |= {name: array.shape for name, array in known.items()}
    return shapes


def _extents(value: ir.Value) -> tuple[int, ...] | None:
    """Return a shape that is known in full."""
    if value.shape is None:
        return None
    extents = tuple(dim for dim in value.shape if isinstance(dim, int))
    return extents if len(extents) == len(value.shape) else None


def count_values(value: Any) -> int:
    """Count the numbers of a value as onnxruntime gives it: an array, a sequence of arrays, or nothing."""
    if isinstance(value, list):
        return sum(map(count_values, value))
    return 0 if value is None else int(np.size(value))


def known_sizes(model: ir.Model, names: Sequence[str]) -> dict[str, int]:
    """Count the numbers per sample of those values whose shape is fixed but for the batch; nothing is run."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    sizes = {}
    for name in names:
        shape = values[name].shape
        extents = [] if shape is None else [dim if isinstance(dim, int) else 0 for dim in shape]
        extents[:1] = [1]  # the batch
        sizes[name] = math.prod(extents) if len(extents) > 1 else 0
    return {name: size for name, size in sizes.items() if size}


def exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Copy the model with exactly the named values as outputs; what they do not need is dropped."""
    copy = model.clone()
    values = {str(value.name): value for node in copy.graph for value in node.outputs if value.name}
    values |= {str(value.name): value for value in copy.graph.inputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    RemoveUnused()(copy)
    return copy


def section(model: ir.Model, source: str, names: Sequence[str]) -> ir.Model:
    """Copy what lies between one value, which becomes the only input, and the named ones that depend on it."""
    copy = exposed(model, names)
    values = [*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs)]
    old = next(value for value in values if value.name == source)
    rank = None if old.shape is None else ir.Shape([None] * len(old.shape))
    new = ir.Value(name=source, type=old.type, shape=rank)
    old.name = f"{source}_before"
    ir.convenience.replace_all_uses_with(old, new)
    copy.graph.inputs.clear()
    copy.graph.inputs.append(new)
    RemoveUnused()(copy)
    return copy


def infer_statically(model: ir.Model) -> None:
    """Merge types and shapes that ONNX infers without weights; where it fails, nothing changes: a run comes after."""
    message, _ = message_without_weights(model)
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(message, data_prop=True))
    except Exception:
        return
    known = {value.name: value for node in inferred.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            inferred_value = known.get(value.name)
            if inferred_value is None:
                continue
            value.type = value.type or inferred_value.type
            value.shape = value.shape or inferred_value.shape
