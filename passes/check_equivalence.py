"""Proof that a rewritten graph computes what it did before.

An output that says little (a blank page, a saturated probability) is a small number with the rounding of large ones in
it: what may differ is measured against what rounding does to the float model itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ptq.core.errors import EquivalenceError
from ptq.models.sessions import RunError, run, session_of
from ptq.passes.decisions import decisions_of, telling, told
from ptq.passes.normalize import InlineFunctions

Outputs = Mapping[str, NDArray[Any]]

TOLERANCE = 1e-4
"""Largest difference allowed, as a fraction of the output's largest magnitude: reassociated float32 sums, with room."""

SHAKEN = 0.1
"""Share of the tolerance by which weights and inputs are changed to see what rounding does."""

DRAWS, ROOM = 2, 4
"""Times that is done, and how many times the largest effect is allowed: sums round in order, changes at random."""

MANY = 16
"""Numbers from which on a constant is a weight, and not a size or a bound."""

LITTLE = 1e-2
"""Spread of an output, relative to 1 or its largest magnitude, below which it says little."""

BOUNDED = ("HardSigmoid", "Sigmoid", "Softmax", "Tanh")
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Original:
    """A model on one sample, which rewritten ones have to equal.

    Attributes:
        model: The model; stays as it is.
        feed: The sample.
        custom_ops: Libraries the model needs.
    """

    model: ir.Model
    feed: Outputs
    custom_ops: Sequence[str | Path] = ()

    @functools.cached_property
    def outputs(self) -> Outputs:
        """Outputs of the model for the sample, by name."""
        return float_outputs(self.model, self.feed, self.custom_ops)

    def require_same(self, name: str, changed: ir.Model, tolerance: float = TOLERANCE) -> None:
        """Refuse a model that computes something else.

        Where outputs of the sample say little or differ, a made-up sample says more, and how large they can be.

        Args:
            name: The pass, for the message.
            changed: The rewritten model.
            tolerance: Of the largest magnitude of an output, and of weights: what a tenth of it does to the output when
                all weights change by that is allowed too.

        Raises:
            EquivalenceError: As `require_same`.
        """
        after = self._of(changed)
        before = {output: values for output, values in self.outputs.items() if output in after or not self._decides}
        differs = any(_unlike(values, after.get(output), tolerance) for output, values in before.items())
        if not differs and not any(_says_little(values) for values in before.values()):
            return
        samples, bounded = (self, *self._made_up()), _bounded(self.model)
        least = {
            output: max(LITTLE if output in bounded else 0.0, *(_reach(each.outputs[output]) for each in samples), 0.0)
            for output in before
        }
        for each in samples:
            found, shaken = each._of(changed), functools.partial(each._shaken, SHAKEN * tolerance)
            shared = {output: each.outputs[output] for output in before}
            require_same(name, shared, found, tolerance, least=least, shaken=shaken)

    def _of(self, other: ir.Model) -> Outputs:
        """Return what another model makes of the sample, with this one's decisions."""
        return float_outputs(other, self.feed, self.custom_ops, self.outputs)

    @property
    def _decides(self) -> bool:
        """Whether more than outputs is compared: values inside, which a rewritten model may lack."""
        return set(self.outputs) != {str(value.name) for value in self.model.graph.outputs}

    def _made_up(self) -> tuple[Original, ...]:
        """Return the model on a sample of the same shapes and magnitudes; nothing if it takes no such samples.

        Floats are multiplied by numbers from -1 to 1, integers change places.
        """
        rng = np.random.default_rng(0)
        feed = {name: _varied(array, rng) for name, array in self.feed.items()}
        other = Original(self.model, feed, self.custom_ops)
        try:
            outputs = other.outputs.values()
        except RunError:
            return ()
        return (other,) if all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f") else ()

    def _shaken(self, share: float) -> tuple[Outputs, ...]:
        """Return what comes out when all weights and float inputs change by up to a share, several times."""
        model = self.model.clone()
        InlineFunctions()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        weights = {name: value.const_value for name, value in model.graph.initializers.items()}
        found = []
        for seed in range(DRAWS):
            rng = np.random.default_rng(seed)
            for name, tensor in weights.items():
                if tensor is not None and tensor.dtype.is_floating_point() and tensor.size >= MANY:
                    changed = _shake(tensor.numpy(), share, rng)
                    model.graph.initializers[name].const_value = ir.tensor(changed, dtype=tensor.dtype, name=name)
            feed = {name: _shake(array, share, rng) for name, array in self.feed.items()}
            try:
                found.append(float_outputs(model, feed, self.custom_ops, self.outputs))
            except RunError:  # a constant that has to be what it is
                return ()
        return tuple(found)


def _shake(array: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[Any]:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return np.asarray(array * (1 + share * rng.uniform(-1, 1, array.shape)), array.dtype)


def _says_little(values: NDArray[Any]) -> bool:
    """Whether all numbers of an output are nearly alike, or nearly 0."""
    if values.dtype.kind != "f" or not values.size:
        return False
    finite = values[np.isfinite(values)].astype(np.float64)
    return float(np.ptp(finite) if finite.size else 0.0) <= LITTLE * max(1.0, _reach(values))


def _varied(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if np.issubdtype(array.dtype, np.floating):
        return np.asarray(np.where(array == 0, 1, array) * rng.uniform(-1, 1, array.shape), array.dtype)
    return rng.permuted(array.reshape(-1)).reshape(array.shape)


def _bounded(model: ir.Model) -> set[str]:
    """Return the outputs that come out of a function with a bounded range, which rounds like numbers around 1."""
    makers = {str(value.name): value.producer() for value in model.graph.outputs}
    return {name for name, node in makers.items() if node is not None and node.op_type in BOUNDED and not node.domain}


def _reach(values: NDArray[Any]) -> float:
    """Return the largest finite magnitude."""
    if values.dtype.kind not in "fc":
        return 0.0
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def float_outputs(
    model: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    custom_ops: Sequence[str | Path] = (),
    like: Mapping[str, NDArray[Any]] = MappingProxyType({}),
) -> dict[str, NDArray[Any]]:
    """Run a model exactly as it is written, with onnxruntime's own optimizations off.

    Args:
        model: The model.
        feed: One sample.
        custom_ops: Libraries the model needs.
        like: What this function returned of the model that this one was made of. A sum that is added up in another
            order may keep another box or pick another row; here both models take the same ones.

    Returns:
        Output name -> value. Where values decide sizes or order of outputs: also the name of each of these and of
        whatever decides them.
    """
    if model.functions:
        model = model.clone()
        InlineFunctions()(model)
    decisions = decisions_of(model)
    names: tuple[str, ...] = tuple(str(value.name) for value in model.graph.outputs)
    given: tuple[str, ...] = ()
    if decisions and like:
        model, given, names = told(model, decisions, like)
    elif decisions:
        model, names = telling(model, decisions), tuple(dict.fromkeys((*decisions.values, *decisions.judged)))
    known = {name: like[name] for name in given}
    with session_of(model, custom_ops=custom_ops, optimization="none") as session:
        return known | dict(zip(names, run(session, {**feed, **known}, names), strict=True))


def require_same(
    name: str,
    before: Outputs,
    after: Outputs,
    tolerance: float = TOLERANCE,
    *,
    least: Mapping[str, float] = NOTHING,
    shaken: Callable[[], Sequence[Outputs]] = tuple,
) -> None:
    """Refuse a change of any output.

    Args:
        name: The pass, for the message.
        before: Outputs before it.
        after: Outputs after it.
        tolerance: Of the largest magnitude of an output.
        least: Magnitude of outputs that is known to be possible.
        shaken: Gives outputs before it under changes as small as rounding; only asked where the tolerance is exceeded.

    Raises:
        EquivalenceError: An output is missing, has another shape, or differs by more than rounding can explain.
    """
    unlike = {
        output: _unlike(values, after.get(output), tolerance, least.get(output, 0.0))
        for output, values in before.items()
    }
    if not any(unlike.values()):
        return
    others = shaken()
    for output, words in unlike.items():
        if words and not _explained(before[output], after.get(output), [other[output] for other in others]):
            raise EquivalenceError(f"pass {name} changed output {output!r}{words}")


def _unlike(before: NDArray[Any], after: NDArray[Any] | None, tolerance: float, least: float = 0.0) -> str:
    """Return how an output differs; nothing if it does not."""
    if after is None or after.shape != before.shape:
        return f" from shape {before.shape} to {'nothing' if after is None else after.shape}"
    if before.dtype.kind not in "fc" or not before.size:
        return "" if np.array_equal(before, after) else f" in {np.mean(before != after):.2%} of its places"
    finite = np.isfinite(before)
    allowed = tolerance * max(_reach(before), least, 1e-30)
    difference = _difference(before, after)
    if np.array_equal(finite, np.isfinite(after)) and difference <= allowed:
        return ""
    return f" by {difference:.3g}, allowed {allowed:.3g}; please report the model"


def _explained(before: NDArray[Any], after: NDArray[Any] | None, others: Sequence[NDArray[Any]]) -> bool:
    """Whether changes as small as rounding make about as large a difference, or as many different decisions."""
    if after is None or not others:
        return False
    if any(other.shape != before.shape for other in others):
        return True  # how much there is of it hangs on rounding
    if after.shape != before.shape:
        return False
    if before.dtype.kind in "fc":
        finite = np.isfinite(before)
        same = np.array_equal(finite, np.isfinite(after))
        return same and _difference(before, after) <= ROOM * max(_difference(before, other) for other in others)
    return bool(np.sum(before != after) <= ROOM * max(np.sum(before != other) for other in others))


def _difference(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Return the largest difference where both are finite."""
    finite = np.isfinite(before) & np.isfinite(after)
    return float(np.abs(before[finite] - after[finite]).max(initial=0.0))
