"""Comparison of two models side by side over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.analysis.decided import Arrays, DecidedComparison, Opening, draw_notes, graph_of, whole_graph
from ptq.analysis.metrics import OutputComparison, OutputMetrics
from ptq.calibration.reader import Sample
from ptq.core.errors import InputError, RecipeError
from ptq.models.load import load_model
from ptq.models.sessions import run, session_of
from ptq.passes.decisions import decisions_of

Metric = Callable[[Mapping[str, NDArray[Any]], NDArray[np.int64] | None], float]
"""User metric: (output name -> all samples, labels or None) -> figure, higher is better."""


@dataclass(frozen=True)
class Accuracy:
    """A figure on labelled data, for both models.

    Attributes:
        name: What it is.
        reference: Of the float model.
        value: Of the quantized model.
    """

    name: str
    reference: float
    value: float


@dataclass(frozen=True)
class Comparison:
    """Differences of two models on the same data.

    Attributes:
        outputs: One row per output.
        accuracies: Top-1 and top-5 when there are labels, and the user's metric.
        num_samples: How many samples were run.
        notes: What the figures are of, where not of the outputs as they are.
    """

    outputs: tuple[OutputMetrics, ...]
    accuracies: tuple[Accuracy, ...]
    num_samples: int
    notes: tuple[str, ...] = ()

    @property
    def sqnr_db(self) -> float:
        """SQNR of the worst output, dB."""
        return min(row.sqnr_db for row in self.outputs)

    @property
    def agreement(self) -> float | None:
        """Agreement of the worst output; None if no output has classes."""
        return min((row.agreement for row in self.outputs if row.agreement is not None), default=None)


def compare(
    reference: str | Path | bytes,
    other: str | Path | bytes,
    samples: Iterable[Sample],
    *,
    custom_ops: Sequence[str | Path] = (),
    metric: tuple[str, Metric] | None = None,
    num_threads: int = 1,
) -> Comparison:
    """Compare two models output by output.

    Args:
        reference: The float model.
        other: The model to judge; outputs are matched by name, or by position when no name is shared.
        samples: Data, consumed once.
        custom_ops: Libraries the models need.
        metric: Name and function of a user metric.
        num_threads: Threads of each session.

    Returns:
        Metrics over all samples.

    Raises:
        InputError: The models' outputs do not match, or there is no sample.
    """
    with ExitStack() as stack:

        def opened(model: ir.Model | str | Path | bytes) -> InferenceSession:
            return stack.enter_context(session_of(model, custom_ops=custom_ops, num_threads=num_threads))

        left, right = opened(reference), opened(other)
        pairs = pair_outputs(left, right)
        names = [name for name, _ in pairs]
        graph, scores, num_samples = graph_of(reference), _Scores(metric, names), 0
        running = _running(graph, (reference, other), names, opened)
        for sample in samples:
            a = run(left, dict(sample.feed), names)
            b = run(right, dict(sample.feed), [name for _, name in pairs])
            running.update(sample.feed, dict(zip(names, a, strict=True)), dict(zip(names, b, strict=True)))
            scores.update(a, b, sample.label)
            num_samples += 1
    if not num_samples:
        raise InputError("the data holds no sample; expected at least one")
    return Comparison(running.rows(), scores.value(), num_samples, (*draw_notes(graph), *running.notes()))


def pair_outputs(left: InferenceSession, right: InferenceSession) -> list[tuple[str, str]]:
    """Pair the outputs of two models by name, or by position where the names differ.

    Raises:
        InputError: They have different numbers of outputs.
    """
    a, b = ([value.name for value in session.get_outputs()] for session in (left, right))
    if set(a) == set(b):
        return [(name, name) for name in a]
    if len(a) != len(b):
        raise InputError(f"the models have {len(a)} and {len(b)} outputs; expected the same outputs in both")
    return list(zip(a, b, strict=True))


class _PlainComparison:
    """Running comparison of outputs as they are."""

    def __init__(self, names: Sequence[str]) -> None:
        self._rows = {name: OutputComparison(name) for name in names}
        self._count = 0

    def update(self, _feed: Arrays, a: Arrays, b: Arrays) -> None:
        """Add one sample: the outputs of both models."""
        self._count += 1
        for name, row in self._rows.items():
            row.update(a[name], b[name])

    def rows(self) -> tuple[OutputMetrics, ...]:
        """Return a row for each output."""
        return tuple(each for row in self._rows.values() for each in row.rows())

    def notes(self) -> Iterator[str]:
        """Yield a note on each output that has another size in the two models."""
        for name, row in self._rows.items():
            if row.num_resized:
                count = f"{row.num_resized} of {self._count} samples"
                yield f"output {name}: of another size than the float model's on {count}, which are not compared"


def _running(
    graph: ir.Model, forms: tuple[str | Path | bytes, str | Path | bytes], names: Sequence[str], opened: Opening
) -> _PlainComparison | DecidedComparison:
    """Choose how outputs are compared: as they are, or with the float model's decisions."""
    decisions = decisions_of(graph)
    if not decisions:
        return _PlainComparison(names)
    return DecidedComparison(decisions, (whole_graph(forms[0]), load_model(forms[1])), names, opened)


class _Scores:
    """Running sums for top-1, top-5 and the user's metric of both models."""

    def __init__(self, metric: tuple[str, Metric] | None, names: Sequence[str]) -> None:
        self._metric = metric
        self._names = names
        self._labels: list[int] = []
        self._hits: dict[str, list[int]] = {}
        self._kept: tuple[list[list[NDArray[Any]]], list[list[NDArray[Any]]]] = ([], [])

    def update(self, a: list[NDArray[Any]], b: list[NDArray[Any]], label: int | None) -> None:
        """Score both models on one sample."""
        if label is not None:
            self._labels.append(label)
            self._rank(a[0], b[0], label)
        if self._metric is not None:
            self._kept[0].append(a)
            self._kept[1].append(b)

    def value(self) -> tuple[Accuracy, ...]:
        """Return all figures, those without a basis left out."""
        rows = [
            Accuracy(name, hits[0] / len(self._labels), hits[1] / len(self._labels))
            for name, hits in self._hits.items()
        ]
        if self._metric is not None:
            name, function = self._metric
            figures = [self._call(function, kept) for kept in self._kept]
            rows.append(Accuracy(name, *figures))
        return tuple(rows)

    def _rank(self, a: NDArray[Any], b: NDArray[Any], label: int) -> None:
        if a.ndim != 2 or a.shape[0] != 1 or a.shape[1] < 2:
            return
        for name, places in (("top1", 1), ("top5", 5)):
            if a.shape[1] <= places:
                continue
            hits = self._hits.setdefault(name, [0, 0])
            for which, scores in enumerate((a[0], b[0])):
                best = np.argsort(-scores, kind="stable")[:places]
                hits[which] += int(label in best)

    def _call(self, function: Metric, kept: list[list[NDArray[Any]]]) -> float:
        outputs = {name: _joined([row[i] for row in kept]) for i, name in enumerate(self._names)}
        labels = np.asarray(self._labels, np.int64) if self._labels else None
        try:
            return float(function(outputs, labels))
        except Exception as error:  # it is the user's code
            name = self._metric[0] if self._metric else "the metric"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise RecipeError(f"--metric {name} fails on (outputs, labels): {reason}") from error


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join the arrays of all samples; those of different sizes as an array of arrays."""
    if all(array.ndim and array.shape[1:] == arrays[0].shape[1:] for array in arrays):
        return np.concatenate(arrays)
    joined = np.empty(len(arrays), object)
    joined[:] = arrays
    return joined
