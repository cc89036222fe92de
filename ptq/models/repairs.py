"""Repairs of a model file before anything reads it: of forms that onnxruntime or the tools before it refuse."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ptq.core.errors import InputError
from ptq.models.validation import OPEN, bodies_of

MAX_DENSE_BYTES = 2**30


def make_dense(proto: onnx.ModelProto, where: str) -> bool:
    """Write sparse weights out, which no tool behind this one knows; return whether there were any.

    Raises:
        InputError: One would be too large, or its indices lie outside.
    """
    graph = proto.graph
    sparse = list(graph.sparse_initializer)
    for tensor in sparse:
        name, size = tensor.values.name, math.prod(tensor.dims)
        if min(tensor.dims, default=0) < 0 or size * 8 > MAX_DENSE_BYTES:
            raise InputError(f"{where}: sparse tensor {name!r} of shape {list(tensor.dims)} is too large to write out")
        try:
            dense = onnx.numpy_helper.from_array(_dense(tensor, size), name)
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(f"{where}: sparse tensor {name!r}: {' '.join(str(error).split())[:200]}") from error
        graph.initializer.append(dense)
    del graph.sparse_initializer[:]
    return bool(sparse)


def _dense(tensor: onnx.SparseTensorProto, size: int) -> NDArray[Any]:
    values, places = onnx.numpy_helper.to_array(tensor.values), onnx.numpy_helper.to_array(tensor.indices)
    flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), tuple(tensor.dims))
    if len(flat) != len(values) or flat.min(initial=0) < 0:
        raise ValueError(f"{len(values)} values at {len(flat)} places; expected one value each, and none below 0")
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    return dense.reshape(tuple(tensor.dims))


def name_apart(proto: onnx.ModelProto) -> bool:
    """Drop node names that occur twice, which onnxruntime refuses; return whether there were any."""
    seen: set[str] = set()
    twice = [node for node in proto.graph.node if node.name and (node.name in seen or seen.add(node.name))]  # type: ignore[func-returns-value]
    for node in twice:
        node.name = ""
    return bool(twice)


def put_in_order(proto: onnx.ModelProto) -> bool:
    """Sort nodes that come before what they read, as onnxruntime does; return whether any did. Cycles stay."""
    nodes = list(proto.graph.node)
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{producer[name] for name in _names_read(node) if name in producer} for node in nodes]
    if all(max(producers, default=-1) < index for index, producers in enumerate(needs)):
        return False
    readers: dict[int, list[int]] = {}
    for index, producers in enumerate(needs):
        for other in producers:
            readers.setdefault(other, []).append(index)
    missing = [len(producers) for producers in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for index in readers.get(order[-1], ()):
            missing[index] -= 1
            if not missing[index]:
                heapq.heappush(ready, index)
    if len(order) < len(nodes):
        return False
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[index] for index in order)
    return True


def free_extents(proto: onnx.ModelProto) -> bool:
    """Leave open the extents of -1 by which older exporters say that they are; return whether there were any.

    Args:
        proto: The model; extents of inputs, outputs and values inside, those of bodies too.
    """
    waiting, found = [proto.graph], False
    while waiting:
        graph = waiting.pop()
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
                if dim.dim_value == OPEN:
                    dim.ClearField("dim_value")
                    found = True
        waiting += [body for node in graph.node for body in bodies_of(node)]
    return found


def give_shapes(proto: onnx.ModelProto) -> bool:
    """Give outputs that are declared without a shape the one that follows from the graph; return whether any got one.

    onnxruntime needs none, the checker does. Where inference gives up, the output stays as it is.
    """
    bare = [
        v for v in proto.graph.output if v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape")
    ]
    if not bare:
        return False
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # of several types; the checker will say what is wrong with the model
        return False
    shapes = {v.name: v.type.tensor_type.shape for v in inferred.graph.output if v.type.tensor_type.HasField("shape")}
    for value in bare:
        if value.name in shapes:
            value.type.tensor_type.shape.CopyFrom(shapes[value.name])
    return any(value.name in shapes for value in bare)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node and its bodies read."""
    return {name for name in node.input if name} | {
        name for graph in bodies_of(node) for inner in graph.node for name in _names_read(inner)
    }
