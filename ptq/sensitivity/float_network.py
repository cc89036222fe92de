"""The network in float, standing before a layer: the rest of it is run with that layer's errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.parallel import in_order
from ptq.calibration.segments import IR_VERSION, SegmentedRun
from ptq.core.arrays import Float
from ptq.core.layer import LinearLayer
from ptq.models.sessions import run, session_of
from ptq.passes.decisions import judged_values
from ptq.passes.graph import initializer_of
from ptq.sensitivity.problem import RoundedLayer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class PlacedLayer(RoundedLayer):
    """Rounded layer with its place in the graph.

    Attributes:
        layer: Names of its values.
        rounding: Errors of its weight, real units. Shape [out, in].
        centered: Whether a bias takes up the mean of what they add to the layer's output.
    """

    layer: LinearLayer
    rounding: NDArray[np.float32]
    centered: bool


@dataclass(frozen=True)
class FloatNetwork:
    """Float network over the calibration set, on which layers are looked at as the walk comes to them.

    Attributes:
        model: Prepared float model.
        walk: Stands before the layer that is looked at; its last stop is the model's outputs.
        sizes: Samples in each chunk of the walk.
        custom_ops: Libraries the model needs.
        num_probes: Chunks that are looked at, evenly spread.
    """

    model: ir.Model
    walk: SegmentedRun
    sizes: Sequence[int]
    custom_ops: Sequence[str | Path] = field(default=())
    num_probes: int = 2

    @property
    def total(self) -> float:
        """Error of the float network itself: 0."""
        return 0.0

    def errors(self, layer: PlacedLayer, sets: Sequence[NDArray[np.intp]]) -> Float:
        """Let some features of the layer err, set by set, and everything else be float; see `Attribution.errors`.

        Energies are relative to each output's own, and summed over outputs.
        """
        total = np.zeros(len(sets))
        with self._alone(layer) as exact, self._alone(layer, layer.rounding) as error, self._behind(layer) as behind:
            for chunk in self._probes:
                held = self.walk.held(chunk)
                source = {layer.layer.source: held[layer.layer.source]}
                output, change = run(exact, source)[0], run(error, source)[0]
                change = _centered(change, layer.layer) if layer.centered else change
                total += behind.errors(held, output, output + change, sets)
        return total / len(self._probes)

    def positions(self, layer: PlacedLayer) -> int:
        """Count the positions at which the layer computes each feature, per sample."""
        last = self._probes[-1]
        with self._alone(layer) as exact:
            (output,) = run(exact, {layer.layer.source: self.walk.held(last)[layer.layer.source]})
        return int(output.size) // len(layer.rounding) // self.sizes[last]

    @property
    def _probes(self) -> list[int]:
        return sorted({self.walk.num_chunks * index // self.num_probes for index in range(self.num_probes)})

    def _alone(
        self, layer: PlacedLayer, weight: NDArray[np.float32] | None = None
    ) -> AbstractContextManager[InferenceSession]:
        """Open the layer by itself; with another weight if one is given, and then without bias."""
        tensor = None if weight is None else layer.layer.layout.to_tensor(weight)
        return session_of(_model_of(self.model, layer.layer, tensor), custom_ops=self.custom_ops)

    @contextmanager
    def _behind(self, layer: PlacedLayer) -> Iterator[_Behind]:
        rest, reads = self.walk.rest(layer.name)
        outputs = judged_values(self.model)
        opened = nullcontext() if rest is None else session_of(rest, custom_ops=self.custom_ops)
        with opened as session:
            yield _Behind(layer.layer, session, reads, outputs)


@dataclass(frozen=True)
class _Behind:
    """The rest of the network behind a layer.

    Attributes:
        layer: Layer that it is behind.
        session: Session that runs it; None where there is nothing.
        reads: Values that it reads, perhaps the layer's output among them.
        outputs: Outputs of the network.
    """

    layer: LinearLayer
    session: InferenceSession | None
    reads: tuple[str, ...]
    outputs: tuple[str, ...]

    def errors(
        self, held: Values, output: NDArray[Any], changed: NDArray[Any], sets: Sequence[NDArray[np.intp]]
    ) -> list[float]:
        """Return relative energies of errors at the outputs with some of the layer's features changed, set by set."""
        reference = self._forward(held, output)
        axis = _feature_axis(self.layer, output.ndim)
        shape = [-1 if i == axis else 1 for i in range(output.ndim)]

        def erring(features: NDArray[np.intp]) -> Values:
            mask = np.isin(np.arange(output.shape[axis]), features).reshape(shape)
            return self._forward(held, np.where(mask, changed, output))

        return [
            sum(_relative(reference[name], values[name]) for name in self.outputs if name in values)
            for values in in_order(erring, sets, os.cpu_count() or 1)
        ]

    def _forward(self, held: Values, output: NDArray[Any]) -> Values:
        """Run the rest on an output of the layer; that output is among what it gives."""
        own = {self.layer.name: output}
        if self.session is None:
            return own
        known = {**held, **own}
        made = [value.name for value in self.session.get_outputs()]
        return own | dict(zip(made, run(self.session, {name: known[name] for name in self.reads}, made), strict=True))


def _feature_axis(layer: LinearLayer, rank: int) -> int:
    """Return the axis of the output features in the layer's output."""
    return (1 if layer.unfold.kernel else -2 if layer.unfold.columns else -1) % rank


def _centered(change: NDArray[Any], layer: LinearLayer) -> NDArray[Any]:
    """Return a change of the layer's output without its mean in every feature."""
    others = tuple(axis for axis in range(change.ndim) if axis != _feature_axis(layer, change.ndim))
    return np.asarray(change - change.mean(others, keepdims=True))


def _relative(reference: NDArray[Any], output: NDArray[Any]) -> float:
    if reference.dtype.kind != "f":
        return 0.0
    signal = float(np.square(reference, dtype=np.float64).sum())
    return float(np.square(output - reference, dtype=np.float64).sum()) / max(signal, 1e-300)


def _model_of(model: ir.Model, layer: LinearLayer, weight: NDArray[np.float32] | None) -> bytes:
    """Serialize the layer's node as a model; with another weight if one is given, and then without bias."""
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
