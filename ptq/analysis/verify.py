"""Verification: load the file that will be delivered, run it beside the float model, count what really runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ptq.analysis.bench import Setting, profile
from ptq.analysis.compare import Comparison, Metric, compare
from ptq.analysis.kernels import Kernels, count_kernels
from ptq.analysis.latency import Latency, measure_latency
from ptq.calibration.reader import Sample
from ptq.core.errors import InputError, VerificationError


@dataclass(frozen=True)
class Verification:
    """Figures of a delivered model file: outputs, kernels and latency.

    Attributes:
        comparison: Outputs against the float model's.
        kernels: What onnxruntime runs.
        latency: Time against the float model's.
        operators: Where the time of `float` and `quantized` goes: operator -> nodes and milliseconds; empty if nobody
            asked.
    """

    comparison: Comparison
    kernels: Kernels
    latency: Latency
    operators: Mapping[str, Mapping[str, tuple[int, float]]] = field(default_factory=dict)


def verify(
    reference: str | Path | bytes,
    path: Path,
    samples: Iterable[Sample],
    first: Sample,
    *,
    custom_ops: Sequence[str | Path] = (),
    metric: tuple[str, Metric] | None = None,
) -> Verification:
    """Verify a quantized model file.

    Args:
        reference: The float model as it came.
        path: The quantized model on disk.
        samples: What to compare on.
        first: The sample to time.
        custom_ops: Libraries the models need.
        metric: Name and function of a user metric.

    Returns:
        Outputs, kernels and latency.

    Raises:
        VerificationError: The quantized model does not load or run, or its outputs are not finite.
    """
    try:
        kernels = count_kernels(path, custom_ops)
        comparison = compare(reference, path, samples, custom_ops=custom_ops, metric=metric)
        latency = measure_latency(reference, path, first.feed, custom_ops=custom_ops)
    except InputError as error:
        raise VerificationError(f"the quantized model failed its check: {error}; please report the model") from error
    return Verification(comparison, kernels, latency)


def with_operators(
    proof: Verification, reference: str | Path | bytes, path: Path, first: Sample, custom_ops: Sequence[str | Path]
) -> Verification:
    """Add to a verification where the time of both models goes; arguments as of `verify`."""
    models, setting = {"float": reference, "quantized": path}, Setting(tuple(custom_ops))
    return replace(proof, operators={name: profile(model, first.feed, setting) for name, model in models.items()})
