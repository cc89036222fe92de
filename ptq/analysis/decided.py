"""Comparison of models that decide sizes or order: with the same decisions in both, in front of them, and by size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.analysis.metrics import OutputComparison, OutputMetrics
from ptq.calibration.sample import Sample
from ptq.models.draws import random_nodes
from ptq.models.lean import without_weights
from ptq.models.load import load_model
from ptq.models.sessions import run
from ptq.passes.decisions import Decisions, decisions_of, telling
from ptq.passes.decisions import told as told_model
from ptq.passes.normalize import InlineFunctions

Arrays = Mapping[str, NDArray[Any]]
Opening = Callable[[ir.Model], InferenceSession]


def graph_of(form: str | Path | bytes) -> ir.Model:
    """Read the graph of a model that was read before, its functions inlined, without its large weights."""
    proto = onnx.ModelProto.FromString(form if isinstance(form, bytes) else Path(form).read_bytes())
    return _inlined(ir.from_proto(without_weights(proto)))


def whole_graph(form: str | Path | bytes) -> ir.Model:
    """Read a model with its weights, its functions inlined."""
    return _inlined(load_model(form))


def _inlined(model: ir.Model) -> ir.Model:
    if model.functions:
        InlineFunctions()(model)
    return model


def draw_notes(model: ir.Model) -> Iterator[str]:
    """Yield a note on operators that draw random numbers, if there are any."""
    counts: dict[str, int] = {}
    for node in random_nodes(model):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    if counts:
        drawn = ", ".join(f"{count} {op_type}" for op_type, count in counts.items())
        yield f"random numbers ({drawn}): calibrated and compared with fixed draws, the same in both models"


@dataclass
class _Sizes:
    """Sizes of an output of both models, in numbers."""

    equal: int = 0
    count: int = 0
    reference: int = 0
    other: int = 0
    alike: int = 0

    def update(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        self.count += 1
        self.equal += a.shape == b.shape
        self.reference += a.size
        self.other += b.size
        self.alike += int((a == b).sum()) if a.shape == b.shape and a.dtype.kind in "iub" else 0

    def __str__(self) -> str:
        if self.equal == self.count:
            alike = f", {self.alike / self.reference:.1%} of its numbers alike" if self.alike else ""
            return f"as large as the float model's on every sample{alike}"
        share = f"{self.other / self.reference:.1%}" if self.reference else f"{self.other} instead of 0"
        return f"as large as the float model's on {self.equal} of {self.count} samples, {share} of its numbers in all"


class DecidedComparison:
    """Running comparison of a float model that decides sizes or order with another.

    Args:
        decisions: Decisions of the float model.
        models: The float model, which tells its decisions, and the other, which is told.
        names: Outputs of the float model.
        opened: Opens a session.
    """

    def __init__(
        self, decisions: Decisions, models: tuple[ir.Model, ir.Model], names: Sequence[str], opened: Opening
    ) -> None:
        self._decisions, self._other, self._names, self._opened = decisions, models[1], names, opened
        self._asked = tuple(dict.fromkeys((*decisions.values, *decisions.judged)))
        self._left = opened(telling(models[0], decisions))
        self._right: InferenceSession | None = None
        self._given: tuple[str, ...] = ()
        self._compared: tuple[str, ...] = ()
        self._rows: dict[str, OutputComparison] = {}
        self._sizes = {name: _Sizes() for name in decisions.moved}

    def update(self, feed: Arrays, a: Arrays, b: Arrays) -> None:
        """Add one sample.

        Args:
            feed: The sample.
            a: Outputs of the float model, by name.
            b: Outputs of the other model as it is, by the float model's names.
        """
        known = dict(zip(self._asked, run(self._left, dict(feed), self._asked), strict=True))
        if not self._rows:
            self._begin(known)
        told = dict(feed) | {name: known[name] for name in self._given}
        values = run(self._right, told, self._compared) if self._right is not None else []
        for name, value in zip(self._compared, values, strict=True):
            self._rows[name].update(known[name], value)
        for name in self._rows.keys() - set(self._compared):
            self._rows[name].update(a[name], b[name])
        for name, sizes in self._sizes.items():
            sizes.update(a[name], b[name])

    def rows(self) -> tuple[OutputMetrics, ...]:
        """Return a row for each output that can be compared, and for what stands in front of the others."""
        return tuple(each for row in self._rows.values() for each in row.rows())

    def notes(self) -> Iterator[str]:
        """Yield what a user should know of the rows."""
        moved, fronts = ", ".join(self._decisions.moved), [name for name in self._compared if name not in self._names]
        how = "compared as they are"
        if self._given and self._compared:
            how = "compared with the float model's decisions given to both models"
        how += f", and in front of these at {', '.join(fronts)}" if fronts else ""
        makers = ", ".join(self._decisions.makers) or "inside bodies"
        yield f"size or order of {moved} depends on computed values ({makers}): {how}"
        for name, sizes in self._sizes.items():
            yield f"output {name} by itself: {sizes}"

    def _begin(self, known: Arrays) -> None:
        """Open the other model for decisions of these types, and choose what is compared."""
        model, self._given, self._compared = told_model(self._other, self._decisions, known)
        self._right = self._opened(model) if self._compared else None
        decided = set(self._decisions.moved) - set(self._decisions.computed)
        chosen = [name for name in self._names if name in self._compared or name not in decided]
        chosen += [name for name in self._compared if name not in chosen]
        for name in chosen or self._names:
            self._rows[name] = OutputComparison(name, has_classes=name in self._names)


@dataclass(frozen=True)
class ToldPair:
    """Two models with the float model's decisions as inputs, where it has any.

    Attributes:
        reference: The float model.
        other: The model to judge.
        tell: Adds the decisions to a sample.
        notes: What a user should know of it.
    """

    reference: ir.Model
    other: ir.Model
    tell: Callable[[Sample], Sample]
    notes: tuple[str, ...] = ()


def told_pair(reference: ir.Model, other: ir.Model, feed: Arrays, opened: Opening) -> ToldPair:
    """Let two models take the float model's decisions as inputs, and give what is to be compared then.

    Args:
        reference: The float model.
        other: One made of it.
        feed: One sample.
        opened: Opens a session.

    Returns:
        Copies of the models; they themselves where there is nothing to decide, or the other knows none of the names.
    """
    notes = tuple(draw_notes(reference))
    whole = _inlined(reference.clone()) if reference.functions else reference
    decisions = decisions_of(whole)
    made = {str(value.name) for node in other.graph for value in node.outputs}
    computed, fronts = (tuple(name for name in each if name in made) for each in (decisions.computed, decisions.fronts))
    names = tuple(name for name in decisions.values if name in made)
    if not (computed or fronts) or not names:
        return ToldPair(reference, other, lambda sample: sample, notes)
    shared = replace(decisions, values=names, computed=computed, fronts=fronts)
    session = opened(telling(whole, shared))

    def decide(sample: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(names, run(session, dict(sample), names), strict=True))

    first = decide(feed)
    left, right = (told_model(model, shared, first)[0] for model in (whole, other))
    compared, moved = ", ".join((*computed, *fronts)), ", ".join(decisions.moved)
    told = (
        f"size or order of {moved} depends on computed values: compared with the float model's decisions, at {compared}"
    )
    return ToldPair(
        left, right, lambda sample: replace(sample, feed={**sample.feed, **decide(sample.feed)}), (*notes, told)
    )
