"""Guard of recurrent layers: weights and inputs that 8 bits with a scale per row would ruin, as the data shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.calibration_set import CalibrationSet
from ptq.core.arrays import Feed
from ptq.core.decibels import decibels
from ptq.passes.infer_shapes import observe
from ptq.passes.linear import constant, name_of
from ptq.passes.selection import Exclusions
from ptq.passes.stored import GATES, RECURRENT, StoredWeight
from ptq.transforms.rewritten import Rewritten

LOOKED_AT = 4
"""Samples that inputs of recurrent layers are taken from."""

COLUMNS = (0, 2)
"""Axes of scales for every input instead of every gate's feature."""

LENIENT_DB = 8.0
"""How much less than an input of a layer the gates of an integer kernel may keep: they saturate, and steps average."""

FINE_DB, COARSE_DB, PER_BIT_DB = 35.0, 25.0, 6.0
"""Signal to error at the gates below which columns are tried, and below which a weight stays float; at 8 bits."""


GOOD_DB = 30.0
"""Signal to error at the gates from which on an LSTM runs on integers though nobody asked for ranges at run time: what
eight bits of a usual layer's input keep."""

LEAST_HIDDEN = 64
"""Size of the state from which on onnxruntime's integer LSTM is faster than its float one, measured: .95 to .54 of its
time at 64, 1.0 to 1.4 at 16 and 32."""

STILL = 0.01
"""Share of the gates' mean energy that none is taken to be below."""


@dataclass(frozen=True)
class GuardRecurrent:
    """Choose scales of recurrent weights by the error at the gates, and float kernels where integers err too much.

    A weight meets inputs of very different sizes, and undoes that: a feature that is small has large weights. A scale
    per row is then set by weights that meet little, and the others, which meet most, get few codes; a scale per column
    fits. Integers for the input have one step for all features, which small ones do not survive.

    Attributes:
        exclusions: The user's.
        min_input_sqnr_db: Least signal to error of a layer's input on integers, dB; None where no LSTM is on them.
        dynamic: Whether LSTMs are meant to be on integers; else only those are that are faster and lose nothing by it.
    """

    exclusions: Exclusions
    min_input_sqnr_db: float | None = None
    dynamic: bool = False

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Look at the recurrent layers of the main graph.

        Args:
            state: The model so far. Not modified.
            calibration: The calibration set, of which the first samples are run; no pass over it has begun.

        Returns:
            The state with the axes that scales run along, and with layers on float kernels.
        """
        excluded = self.exclusions.on(state.model)
        nodes = [node for node in state.model.graph if _has_weights(node) and not excluded(node)]
        if not nodes:
            return state
        names = list(dict.fromkeys(str(value.name) for node in nodes for value in _met(node) if value is not None))
        feeds = calibration.ahead(LOOKED_AT)
        seen = _look(state.model, names, feeds, calibration)
        axes, floats, recurrent = dict[str, tuple[int, ...]](), dict[str, str](), set[str]()
        for node in nodes:
            sides = list(_sides(state, node, seen))
            if node.op_type == "LSTM" and self.min_input_sqnr_db is not None:
                kept = min(side.on_integers_db for side in sides)
                why = self._why_float(node, kept)
                if why is None:
                    recurrent.add(name_of(node))
                    continue  # its integer kernel knows scales per row only, and they do
                floats[name_of(node)] = why
            axes |= {side.weight.name: side.axes() for side in sides}
        more = frozenset() if self.dynamic else frozenset(recurrent)
        return replace(state, axes={**state.axes, **axes}, floats={**state.floats, **floats}, recurrent=more)

    def _why_float(self, node: ir.Node, kept_db: float) -> str | None:
        """Say why an LSTM whose gates keep so much on integers does not run on them; None if it does."""
        least_db = self.min_input_sqnr_db or 0.0
        weights = [weight for value in node.inputs[1:3] if (weight := constant(value)) is not None]
        if not self.dynamic and min(weight.shape[1] for weight in weights) < 4 * LEAST_HIDDEN:
            return f"below {LEAST_HIDDEN} features onnxruntime's integer LSTM is no faster"
        if kept_db >= (least_db - LENIENT_DB if self.dynamic else max(least_db, GOOD_DB)):
            return None
        return f"on integers its gates keep only {kept_db:.1f} dB: inputs differ too much in size"


@dataclass(frozen=True)
class _Side:
    """Weight of a recurrent layer with what it meets.

    Attributes:
        weight: The weight.
        array: Its numbers. Shape [directions, gates, inputs].
        power: Mean squares of what it meets. Shape [directions or 1, inputs].
        step: Step of 8 bits over all of that.
        num_bits: Word length of its codes.
    """

    weight: StoredWeight
    array: NDArray[np.float64]
    power: NDArray[np.float64]
    step: float
    num_bits: int

    def axes(self) -> tuple[int, ...]:
        """Return the axes that scales run along; none for a weight that stays float."""
        missing = PER_BIT_DB * (8 - self.num_bits)
        rows, columns = self._kept_db(self._errors(2)), self._kept_db(self._errors(1))
        if rows >= FINE_DB - missing:
            return GATES
        return () if max(rows, columns) < COARSE_DB - missing else GATES if rows >= columns else COLUMNS

    @property
    def on_integers_db(self) -> float:
        """Signal to error at the gates where scales run along rows and inputs are rounded to 8 bits, dB."""
        return self._kept_db(self._errors(2) + np.square(self.array).sum(2) * self.step**2 / 12)

    def _errors(self, axis: int) -> NDArray[np.float64]:
        """Return the energy of the error at each gate if all weights along an axis share a scale."""
        steps = np.abs(self.array).max(axis, keepdims=True) / (2 ** (self.num_bits - 1) - 1)
        return np.asarray((np.broadcast_to(np.square(steps) / 12, self.array.shape) * self.power[:, None]).sum(2))

    def _kept_db(self, errors: NDArray[np.float64]) -> float:
        """Return the signal to error that gates keep on average; those that hardly move count as if they did a little.

        Every gate counts alike, as they saturate: a few with huge weights must not speak for the others.
        """
        signal = (np.square(self.array) * self.power[:, None]).sum(2)
        least = max(STILL * float(signal.mean()), 1e-300)
        return decibels(1.0, float((errors / np.maximum(signal, least)).mean()))


def _has_weights(node: ir.Node) -> bool:
    arrays = [constant(value) for value in node.inputs[1:3]]
    known = all(array is not None and array.dtype == np.float32 and array.ndim == 3 for array in arrays)
    return node.op_type in RECURRENT and not node.domain and known and not node.attributes.get_int("layout", 0)


def _met(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Return what both weights meet: the input, and the outputs of all steps if there are any."""
    output = node.outputs[0] if node.outputs and node.outputs[0].name else None
    return node.inputs[0], output


def _look(
    model: ir.Model, names: list[str], feeds: list[Feed], calibration: CalibrationSet
) -> dict[str, list[NDArray[np.float64]]]:
    """Return named values on some samples."""
    runs = [observe(model, names, feed, calibration.custom_ops) for feed in feeds]
    return {name: [np.asarray(arrays[i], np.float64) for arrays in runs] for i, name in enumerate(names)}


def _sides(state: Rewritten, node: ir.Node, seen: dict[str, list[NDArray[np.float64]]]) -> Iterator[_Side]:
    """Yield both weights of a layer with what they meet; what nobody gives out is taken as alike everywhere."""
    for value, met in zip(node.inputs[1:3], _met(node), strict=True):
        array = constant(value)
        if value is None or array is None:
            continue
        weight = StoredWeight(str(value.name), array.shape, GATES, "recurrent", name_of(node))
        arrays = [] if met is None else [each for each in seen[str(met.name)] if each.size]
        bits = state.choices.choice(weight).spec.num_bits
        if not arrays:
            yield _Side(weight, array.astype(np.float64), np.ones((1, array.shape[2])), 0.0, bits)
            continue
        by_channel = [np.moveaxis(each, 1, 0) if each.ndim == 4 else each[None] for each in arrays]  # [directions, ...]
        squares = [np.square(each).reshape(len(each), -1, each.shape[-1]).mean(1) for each in by_channel]
        steps = [(max(each.max(), 0.0) - min(each.min(), 0.0)) / 255 for each in arrays]
        power, step = np.mean(squares, axis=0), float(np.sqrt(np.mean(np.square(steps))))
        yield _Side(weight, array.astype(np.float64), power, step, bits)
