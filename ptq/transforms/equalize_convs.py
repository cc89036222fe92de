"""Equalization of convolutions: channels of activations evened out within the weights around them.

Only where it was seen to help. A scale is proposed by the error to be expected behind the pair, then the pair is run
with rounded weights and activations on a few samples, with the scale and without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.collect import collect
from ptq.calibration.statistics import ExtremesOf
from ptq.core.affine import choose_qparams, fake_quantize
from ptq.core.arrays import Feed, Float
from ptq.core.layer import LinearLayer
from ptq.core.problem import LayerProblem
from ptq.core.progress import counted
from ptq.core.smoothing import Halves, Reader, SmoothingTerms, best_smoothing
from ptq.core.spec import PerTensor
from ptq.core.statistics import HistogramAccumulator
from ptq.models.sessions import run, session_of
from ptq.passes.absorb_bias import AbsorbBias, can_absorb
from ptq.passes.check_equivalence import Original
from ptq.passes.equalize import ChannelPair, Equalize, channel_pairs
from ptq.passes.infer_shapes import exposed, section
from ptq.passes.linear import constant, describe_linear, name_of
from ptq.passes.placement import Excludes
from ptq.passes.selection import Exclusions
from ptq.solving.choices import Choices
from ptq.transforms.rewritten import Rewritten
from ptq.weights import Rtn

PROPOSED_ON = 64
"""Samples whose extremes propose scales, at most."""

MEASURED = 8
"""Number of samples that a scale is measured on."""

EXPECTED_DB, MEASURED_DB = 0.5, 0.2
"""Gain that a scale has to bring behind its pair, by calculation and as measured, dB."""

NARROWEST = 1 / 32
ALWAYS = 0.9
"""Share of the lowest value ever seen in a channel that counts as always there."""

WORTH = 0.9
"""Share of its range that a value may keep for constants to be worth a trial."""

AWAY = 0.5
"""How much of the way to the bound of a Clip a channel may use and still be scaled."""


@dataclass(frozen=True)
class EqualizeConvs:
    """Even out the channels between convolutions, without changing what the model computes.

    Source:
        Data-free quantization, arXiv 1906.04721, section 4.1: scale_c = sqrt(reach of W_c / reach of V_c), and bias
        absorption. Differs: where every feature has a scale of its own, which equal reaches do nothing for, by the
        reach of activations; constants by what channels were never seen to fall below.

    Attributes:
        exclusions: The user's.
        native: Whether operators of our own may run.
    """

    exclusions: Exclusions = field(default_factory=Exclusions)
    native: bool = False

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Rescale pairs of convolutions, and move constants into biases, where the measured error falls.

        Args:
            state: The model so far. Not modified.
            calibration: Its first samples are looked at.

        Returns:
            The new state; `state` itself where nothing is gained.
        """
        calibration.progress("equalize")
        model = state.model
        layers = dict(_layers(model, self.exclusions.on(model), native=self.native))
        pairs = [
            pair for pair in channel_pairs(model) if {name_of(n) for n in (pair.first, *pair.readers)} <= set(layers)
        ]
        if not pairs:
            return state
        feeds = calibration.ahead(PROPOSED_ON)
        wanted = {str(pair.value.name): (ExtremesOf(1),) for pair in pairs}
        shown = counted(feeds, len(feeds), calibration.progress)
        halves = collect(model, shown, wanted, custom_ops=calibration.custom_ops).statistics.halves
        changed, gains, absorbed = model, list[float](), list[float]()
        for name in counted(list(wanted), len(wanted), calibration.progress):
            trial = PairCandidate(
                changed, name, layers, state.choices, halves[name], feeds[:MEASURED], tuple(calibration.custom_ops)
            )
            for improve, known in ((PairCandidate.equalized, gains), (PairCandidate.absorbed, absorbed)):
                trial, gain = improve(trial)
                known.extend([gain] if gain > 0 else [])
            changed = trial.model
        if changed is not model:
            Original(model, feeds[0], calibration.custom_ops).require_same("EqualizeConvs", changed)
        notes = _notes(gains, absorbed, len(halves))
        return replace(state, model=changed, notes=(*state.notes, *notes), evened_out=bool(notes))


def _notes(gains: list[float], absorbed: list[float], num_values: int) -> tuple[str, ...]:
    done = {
        f"{len(gains)} of {num_values} values between convolutions equalised": gains,
        f"channels of {len(absorbed)} values that are always on moved into biases": absorbed,
    }
    return tuple(
        f"{what}: measured error behind them {min(known):.1f} to {max(known):.1f} dB lower"
        for what, known in done.items()
        if known
    )


def _layers(model: ir.Model, excluded: Excludes, *, native: bool) -> Iterator[tuple[str, LinearLayer]]:
    """Yield the convolutions that will run on integers, by name."""
    for node in model.graph:
        layer = describe_linear(node, native=native) if node.op_type == "Conv" and not node.domain else None
        if isinstance(layer, LinearLayer) and not excluded(node):
            yield layer.name, layer


@dataclass(frozen=True)
class PairCandidate:
    """A pair of convolutions with or without scales, to be measured.

    Attributes:
        model: With the pairs before it rescaled.
        name: The value in the middle.
        layers: Every layer by name.
        choices: What their integers will be.
        halves: Extremes of the value.
        samples: To measure on.
        custom_ops: Libraries the model needs.
    """

    model: ir.Model
    name: str
    layers: dict[str, LinearLayer]
    choices: Choices
    halves: Halves
    samples: Sequence[Feed]
    custom_ops: tuple[str | Path, ...]

    def equalized(self) -> tuple[PairCandidate, float]:
        """Return the pair with the scales of least measured error, and what they gain, dB."""
        return self._better(map(self._scaled, self._candidates()))

    def absorbed(self) -> tuple[PairCandidate, float]:
        """Return the pair without the constants of its widest channels, and what that gains, dB."""
        return self._better(map(self._shifted, self._constants()))

    def _better(self, others: Iterator[PairCandidate]) -> tuple[PairCandidate, float]:
        """Return the candidate of least measured error, or this one, and by how many dB it is better."""
        tried = [self, *others]
        if len(tried) == 1:
            return self, 0.0
        inputs = self._inputs()
        wanted = self._outputs(inputs, rounded=False)
        energies = [_distance(wanted, each._outputs(inputs)) for each in tried]
        best = int(np.argmin(energies))
        gain = 10 * np.log10(max(energies[0], 1e-300) / max(energies[best], 1e-300))
        return (tried[best], float(gain)) if gain > MEASURED_DB else (self, 0.0)

    def _scaled(self, scale: Float) -> PairCandidate:
        """Return a candidate with the pair rescaled."""
        changed = self.model.clone()
        Equalize({self.name: scale})(changed)
        return replace(self, model=changed, halves=(self.halves[0].over(scale), self.halves[1].over(scale)))

    def _shifted(self, shift: Float) -> PairCandidate:
        """Return a candidate with constants taken out between the convolutions."""
        changed = self.model.clone()
        AbsorbBias({self.name: shift})(changed)
        return replace(self, model=changed)

    def _constants(self) -> Iterator[Float]:
        """Yield what the widest channels may lose, no more than brings them down to the others, if that is worth it."""
        pair, both = self._pair(self.model), self.halves[0].merge(self.halves[1])
        if not can_absorb(pair):
            return
        most = np.where(both.high > AWAY * pair.bounds[1], 0.0, ALWAYS * np.maximum(both.least, 0.0))
        shift = np.minimum(most, np.maximum(both.high - (both.high - most).max(), 0.0))
        if (both.high - shift).max() < WORTH * both.high.max():
            yield shift

    def _pair(self, model: ir.Model) -> ChannelPair:
        return next(pair for pair in channel_pairs(model) if pair.value.name == self.name)

    def _candidates(self) -> Iterator[Float]:
        pair = self._pair(self.model)
        readers = [
            Reader.of_kernel(weight, node.attributes.get_int("group", 1))
            for node in pair.readers
            if (weight := constant(node.inputs[1])) is not None
        ]
        spec = self.choices.choice(self.layers[name_of(pair.first)]).spec
        terms = SmoothingTerms(EXPECTED_DB, may_stand_aside=False, levels=spec.qmax, narrowest=NARROWEST)
        evened = self._within(pair, best_smoothing(readers, self.halves, terms).scale)
        if not np.array_equal(evened, np.ones_like(evened)):
            yield evened
        weight = constant(pair.first.inputs[1])
        if isinstance(spec.granularity, PerTensor) and weight is not None:
            before = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64)
            behind = np.max([reader.reach.max(2).reshape(-1) for reader in readers], axis=0)
            ratio = before / np.maximum(behind, 1e-9)
            scale = np.sqrt(np.maximum(ratio, max(NARROWEST**2 * ratio.max(), 1e-9)))
            yield self._within(pair, scale / np.exp(np.log(scale).mean()))

    def _within(self, pair: ChannelPair, scale: Float) -> Float:
        """Set scales to 1 where a channel comes near a bound, and let none bring a channel there."""
        both = self.halves[0].merge(self.halves[1])
        near = (both.high > AWAY * pair.bounds[1]) | (both.low < AWAY * pair.bounds[0])
        least = np.maximum(both.high / (AWAY * pair.bounds[1]), both.low / (AWAY * pair.bounds[0]))
        widest = np.exp(np.log(scale[near]).mean()) if near.any() else 1.0  # what the others are evened out with
        return np.where(near, 1.0, np.maximum(scale / widest, least))

    def _inputs(self) -> list[NDArray[Any]]:
        source = _source(self._pair(self.model))
        if source in {str(value.name) for value in self.model.graph.inputs}:
            return [feed[source] for feed in self.samples]
        with session_of(exposed(self.model, [source]), custom_ops=self.custom_ops) as session:
            return [run(session, dict(feed), [source])[0] for feed in self.samples]

    def _outputs(self, inputs: list[NDArray[Any]], *, rounded: bool = True) -> list[list[NDArray[Any]]]:
        """Run the second convolutions on what the first makes of the inputs: in float, or on integers."""
        model = self.model.clone()
        pair = self._pair(model)
        for node in (pair.first, *pair.readers) if rounded else ():
            self._round(node)
        source, ends = _source(pair), [name_of(node) for node in pair.readers]
        with (
            session_of(section(model, source, [self.name])) as front,
            session_of(section(model, self.name, ends)) as back,
        ):
            middle = [run(front, {source: each}, [self.name])[0] for each in inputs]
            middle = self._on_grid(middle) if rounded else middle
            return [run(back, {self.name: each}, ends) for each in middle]

    def _on_grid(self, values: list[NDArray[Any]]) -> list[NDArray[Any]]:
        histogram, spec = HistogramAccumulator(), self.choices.activation
        for each in values:
            histogram.update(each)
        grid = choose_qparams(self.choices.observer.choose_range(histogram.value(), spec), spec)
        return [fake_quantize(each, grid) for each in values]

    def _round(self, node: ir.Node) -> None:
        layer, value = self.layers[name_of(node)], node.inputs[1]
        weight = constant(value)
        if value is None or weight is None:
            raise RuntimeError(f"{layer.name} has no constant weight")
        problem = LayerProblem(layer.name, layer.layout.to_matrix(weight), self.choices.choice(layer).spec)
        decoded = layer.layout.to_tensor(Rtn().quantize(problem).decode().astype(np.float32))
        value.const_value = ir.tensor(decoded, name=value.name)


def _source(pair: ChannelPair) -> str:
    return str(pair.first.inputs[0].name)  # type: ignore[union-attr]


def _distance(wanted: list[list[NDArray[Any]]], found: list[list[NDArray[Any]]]) -> float:
    pairs = [(a, b) for each in zip(wanted, found, strict=True) for a, b in zip(*each, strict=True)]
    return float(sum(np.square(a.astype(np.float64) - b).sum() for a, b in pairs))
