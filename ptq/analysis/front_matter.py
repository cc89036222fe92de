"""Front matter: the head that model cards of Hugging Face begin with."""

from __future__ import annotations

import json
from typing import Any

from ptq.analysis.report import QuantReport


def front_matter(report: QuantReport) -> str:
    """Metadata of a quantized model in YAML, between lines of dashes.

    `base_model` is the file that came in: put the repository's name there before you publish.

    Args:
        report: The run.

    Returns:
        The text, ending with an empty line.
    """
    card = report.card()
    quantization, worst = card["quantization"], report.proof.comparison
    weights, activations = quantization["weights"], quantization["activations"]
    facts: dict[str, Any] = {
        "method": weights["method"]["method"],
        "weight_bits": weights["bits"],
        "weight_granularity": weights["granularity"],
        "activations": f"{activations['bits']} bits, static" if activations["static"] else "no static range",
        "target": quantization["target"],
        "bytes": report.quantized_model.num_bytes,
        "float_bytes": report.float_model.num_bytes,
        "float_sha256": report.float_model.sha256,
        "sqnr_db": float(f"{worst.sqnr_db:.6g}"),
        "agreement": worst.agreement,
        "ptq_version": card["versions"]["ptq"],
    }
    lines = [
        "---",
        "library_name: onnxruntime",
        f"base_model: {json.dumps(report.float_model.name)}",
        "base_model_relation: quantized",
        "tags:",
        *(f"- {tag}" for tag in ("onnx", "onnxruntime", "quantized", "ptq", *_lengths(weights["bits"]))),
        "quantization:",
        *(f"  {key}: {json.dumps(value)}" for key, value in facts.items() if value is not None),
        "---",
    ]
    return "\n".join(lines) + "\n\n"


def _lengths(bits: list[int]) -> list[str]:
    """Write word lengths as tags that people look for."""
    return [f"int{each}" for each in bits]
