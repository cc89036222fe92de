"""Network behind one interface, for methods that judge weights by what they do to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.core.arrays import Feed, Float
from ptq.core.encoding import WeightEncoding
from ptq.core.errors import UnsupportedModelError
from ptq.core.layer import LinearLayer
from ptq.models.sessions import run, session_of
from ptq.passes.decisions import judged_values
from ptq.passes.graph import add_initializer, fresh_name, initializer_of
from ptq.passes.infer_shapes import exposed

NUDGE = 1e-2
"""Size of the weight errors that a gain is measured with, over the root mean square of the weight."""


class RunnableNetwork:
    """Float network with any weights in the place of its own, run on a few samples.

    Args:
        model: Prepared float model.
        layers: Layers of the model.
        feeds: Samples that it is run on.
        custom_ops: Libraries the model needs.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Iterable[LinearLayer],
        feeds: Sequence[Feed],
        custom_ops: Sequence[str | Path] = (),
    ) -> None:
        self._model, self._feeds, self._custom_ops = model, feeds, custom_ops
        self._layers = {layer.name: layer for layer in layers}
        self._outputs = judged_values(model)
        self._reference = self._run(model, self._outputs)

    def error(self, weights: Mapping[str, WeightEncoding]) -> float:
        """Measure the energy of the error at the outputs over that of the outputs; activations stay float.

        Args:
            weights: Layer name -> weight; the others keep their own.
        """
        changed = self._with({name: weight.decode() for name, weight in weights.items()})
        nothing = [[np.zeros_like(array) for array in arrays] for arrays in self._reference]
        signal = max(_energy(self._reference, nothing), 1e-300)
        return _energy(self._reference, self._run(changed, self._outputs)) / signal

    def gain(self, layer: str) -> float:
        """Measure the energy at the outputs for each unit of energy that an error has at a layer's output.

        Measured with weight errors of random signs, the same at every call.
        """
        weight = self._layers[layer].layout.to_matrix(initializer_of(self._model, self._layers[layer].weight))
        signs = np.random.default_rng(0).integers(0, 2, weight.shape) * 2 - 1
        nudged = {layer: (weight + NUDGE * np.sqrt(np.mean(np.square(weight))) * signs).astype(np.float32)}
        changed = self._with(nudged)
        before, after = (self._run(model, (layer,)) for model in (self._model, changed))
        return _energy(self._reference, self._run(changed, self._outputs)) / max(_energy(before, after), 1e-300)

    def gradient(self, layer: str) -> Float:
        """Refuse to give the gradient of the error at the outputs by a layer's weight. Shape [out, in].

        Raises:
            UnsupportedModelError: Always: this network is run, not differentiated.
        """
        raise UnsupportedModelError(f"the gradient of layer {layer!r} needs a network that can be differentiated")

    def _with(self, weights: Mapping[str, NDArray[np.float32]]) -> ir.Model:
        """Copy the model with other weights, each the layer's own even where it shared one with others."""
        changed = self._model.clone()
        nodes = {str(value.name): node for node in changed.graph for value in node.outputs}
        for name, matrix in weights.items():
            layer = self._layers[name]
            tensor = np.ascontiguousarray(layer.layout.to_tensor(matrix), np.float32)
            own = add_initializer(changed.graph, fresh_name(changed.graph, f"{layer.weight}_other"), tensor)
            nodes[name].replace_input_with(layer.weight_index, own)
        return changed

    def _run(self, model: ir.Model, names: Sequence[str]) -> list[list[NDArray[Any]]]:
        with session_of(exposed(model, names), custom_ops=self._custom_ops) as session:
            return [run(session, dict(feed), names) for feed in self._feeds]


def _energy(reference: Sequence[Sequence[NDArray[Any]]], others: Sequence[Sequence[NDArray[Any]]]) -> float:
    """Sum the energy of the differences between values that are floats."""
    return sum(
        float(np.square(b.astype(np.float64) - a).sum())
        for one, other in zip(reference, others, strict=True)
        for a, b in zip(one, other, strict=True)
        if a.dtype.kind == "f"
    )
