"""Report of a run as one value, and the card made of it: everything that confounds a comparison, reproducible.

The card holds only what the inputs determine, so equal inputs give equal bytes. What a clock says goes to a file of
its own (`bench`).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from ptq.analysis.storage import Kind
from ptq.analysis.verdict import Verdict
from ptq.analysis.verify import Verification
from ptq.core.distribution import Distribution
from ptq.core.layer_row import LayerRow
from ptq.runtime.native import native_kernels
from ptq.target import Target

SCHEMA = "ptq.card/1"
MOST_SPREADS = 200
"""Most histograms of each kind in a card."""

TOOLS = ("ptq", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class FileFacts:
    """Facts about a model file.

    Attributes:
        name: File name without folder, or what it was given as.
        sha256: Hash of its bytes.
        num_bytes: Its size, external data included.
        opset: ONNX operator set.
    """

    name: str
    sha256: str
    num_bytes: int
    opset: int


@dataclass(frozen=True)
class DataFacts:
    """Facts about the data of a run.

    Attributes:
        description: Where it came from.
        sha256: Hash of every sample read.
        num_calibration: Samples that ranges were chosen on.
        num_verification: Samples that the outputs were compared on.
        held_out: Whether those are different samples.
        is_random: Whether it was made up.
        labels_used: Labels never influence the quantization, only the accuracy figures.
    """

    description: str
    sha256: str
    num_calibration: int
    num_verification: int
    held_out: bool
    is_random: bool
    labels_used: bool = False


@dataclass(frozen=True)
class TimedPlan:
    """A way to run the model that was tried.

    Attributes:
        name: What it is.
        num_float: Layers that could run on integers, and do not.
        milliseconds: Processor time of one inference, median; all plans in turns.
    """

    name: str
    num_float: int
    milliseconds: float


@dataclass(frozen=True)
class Attempt:
    """A recipe that was tried to meet a goal.

    Attributes:
        name: What it changes.
        sqnr_db: Of the worst output, dB.
        num_bytes: Of the model.
        passed: Whether every goal was met.
    """

    name: str
    sqnr_db: float
    num_bytes: int
    passed: bool


@dataclass(frozen=True)
class QuantReport:
    """Report of a run: everything that happened in it.

    Attributes:
        float_model: What came in.
        quantized_model: What goes out.
        data: Calibration and verification data.
        recipe: The recipe as tables.
        target: The deployment target.
        layers: A row per quantized linear layer.
        left_float: Layer name -> why it stays in float.
        modules: Name of a node -> the module that it was exported from, for those that are named here.
        num_grids: Activation grids that were chosen.
        spreads: First value on each of them -> what was seen.
        equalized: Whether widths of channels were evened out.
        storage: Bytes of the quantized model by kind.
        notes: What preparation changed.
        proof: The verification.
        verdict: Goals and warnings.
        seconds: Wall time.
        peak_rss_mb: Largest resident memory of the process, MiB.
        plans: Ways to run the model among which the fastest was looked for.
        tries: Recipes among which the smallest model that meets the goals was looked for.
        command: How it was asked for on the command line.
        unchanged: Whether the model goes as it came.
    """

    float_model: FileFacts
    quantized_model: FileFacts
    data: DataFacts
    recipe: Mapping[str, Any]
    target: Target
    layers: tuple[LayerRow, ...]
    left_float: Mapping[str, str]
    modules: Mapping[str, str]
    num_grids: int
    spreads: Mapping[str, Distribution]
    equalized: bool
    storage: Mapping[Kind, int]
    notes: tuple[str, ...]
    proof: Verification
    verdict: Verdict
    seconds: float
    peak_rss_mb: float
    plans: tuple[TimedPlan, ...] = ()
    tries: tuple[Attempt, ...] = ()
    command: str = ""
    unchanged: bool = False

    def card(self) -> dict[str, Any]:
        """Return the reproducible part of the report, ready for JSON."""
        comparison = self.proof.comparison
        findings = [finding for finding in self.verdict.findings if not finding.measured]
        return {
            "schema": SCHEMA,
            "verdict": {
                "passed": self.verdict.passed,
                "word": self.verdict.word,
                "floor": self.verdict.floor,
                "findings": [{"level": f.level, "text": f.text} for f in findings],
            },
            "float_model": asdict(self.float_model),
            "quantized_model": asdict(self.quantized_model),
            "data": asdict(self.data),
            "quantization": self._confounders(),
            "accuracy": {
                "outputs": [_rounded(asdict(row)) for row in comparison.outputs],
                "labelled": [_rounded(asdict(row)) for row in comparison.accuracies],
            },
            "storage": dict(self.storage),
            "kernels": asdict(self.proof.kernels),
            "layers": [_rounded(asdict(replace(row, spread=None))) for row in self.layers],
            "spreads": self._spreads(),
            "left_float": dict(sorted(self.left_float.items())),
            "modules": dict(sorted(self.modules.items())),
            "notes": list(self.notes),
            "recipe": dict(self.recipe),
            "versions": {name: version(name) for name in TOOLS},
        }

    def card_json(self) -> str:
        """Return the card as JSON text."""
        return json.dumps(self.card(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def bench(self) -> dict[str, Any]:
        """Return what was measured on this machine in this run, ready for JSON."""
        latency = self.proof.latency
        return {
            "latency": {
                **_rounded(asdict(latency)),
                "ratio": round(latency.ratio, 4),
                "threads": 1,
                "clock": "processor time, p50",
            },
            "operators": {
                model: {name: {"nodes": count, "ms": round(spent, 5)} for name, (count, spent) in operators.items()}
                for model, operators in self.proof.operators.items()
            },
            "command": self.command,
            "quantized_sha256": self.quantized_model.sha256,
            "seconds": round(self.seconds, 2),
            "peak_rss_mb": round(self.peak_rss_mb, 1),
            "host": {
                "machine": platform.machine(),
                "system": platform.system(),
                "cores": os.cpu_count(),
                "native_kernels": native_kernels(),
            },
            "findings": [{"level": f.level, "text": f.text} for f in self.verdict.findings if f.measured],
            "plans": [_rounded(asdict(plan)) for plan in self.plans],
            "tries": [_rounded(asdict(each)) for each in self.tries],
        }

    def extra_macs(self) -> dict[str, Any]:
        """Return what longer words would cost in kernels for one word length, and what they cost here."""
        total = max(sum(row.num_macs for row in self.layers), 1)
        return {
            "share": round(sum(row.extra_macs for row in self.layers) / total, 6),
            "layers": sum(row.extra_macs > 0 for row in self.layers),
            "executed": round(sum(row.executed_macs for row in self.layers) / total, 6),
            "why": "sums of up to 8 bits become one weight when a session opens; a coarse part beyond is a convolution",
        }

    def _spreads(self) -> dict[str, Any]:
        """Return the distributions of weights and activations; of very many the coarsest."""
        weights = {row.name: row.spread for row in self.layers if row.spread is not None}
        kept, omitted = {}, {}
        for kind, spreads in (("activations", self.spreads), ("weights", weights)):
            worst = sorted(spreads, key=lambda name: spreads[name].sqnr_db)[:MOST_SPREADS]
            kept[kind] = {name: _rounded(asdict(spreads[name])) for name in worst}
            omitted[kind] = len(spreads) - len(worst)
        return {**kept, "omitted": omitted}

    def _confounders(self) -> dict[str, Any]:
        activation = self.target.activation
        outer = self.recipe["weights"].get("first_last_bits")
        guarded = sum(row.bias_guarded for row in self.layers)
        return {
            "target": self.target.name,
            "why": self.target.why,
            "weights": {
                "bits": sorted({row.num_bits for row in self.layers}),
                "granularity": self.recipe["weights"]["granularity"],
                "symmetric": True,
                "method": self.recipe["weights"]["method"],
            },
            "activations": {
                "bits": activation.num_bits,
                "signed": activation.signed,
                "granularity": "per-tensor",
                "symmetric": activation.symmetric,
                "static": self.num_grids > 0,
                "observer": self.recipe["activations"],
                "grids": self.num_grids,
            },
            "first_and_last_layer": "like all others" if outer is None else f"{outer} bits",
            "bias": {
                "bits": 32,
                "corrected": self.recipe["weights"]["bias_correction"],
                "overflow_guarded_channels": guarded,
            },
            "accumulator_bits": 32,
            "batchnorm_folded": any("BatchNormalization" in note for note in self.notes),
            "equalized": self.equalized,
            "extra_macs": self.extra_macs(),
            "latency": "one thread, batch of one sample; figures are in the bench file",
        }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Round to six significant digits: enough to compare, few enough to read."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
