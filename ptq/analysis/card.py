"""The card as people read it: Markdown from a report."""

from __future__ import annotations

from collections.abc import Sequence

from ptq.analysis.report import QuantReport
from ptq.analysis.verdict import sentence
from ptq.core.distribution import Distribution
from ptq.core.interval import share_text
from ptq.passes.modules import shown_name
from ptq.recipe.toml import recipe_toml


def card_markdown(report: QuantReport) -> str:
    """Write a report as Markdown. Reproducible: holds no time and no host.

    Args:
        report: The run.

    Returns:
        The text, ending with a newline.
    """
    parts = [
        _head(report),
        _accuracy(report),
        _quantization(report),
        _kernels(report),
        _layers(report),
        _again(report),
        _versions(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: QuantReport) -> str:
    verdict = sentence(report.verdict.word, report.verdict.num_goals, report.verdict.floor)
    verdict += "" if report.verdict.passed else "; no model was delivered"
    findings = [f"- **{finding.level}**: {finding.text}" for finding in report.verdict.findings if not finding.measured]
    before, after = report.float_model, report.quantized_model
    lines = [
        f"# Quantization card: {before.name}",
        f"**Verdict: {verdict}.**",
        "\n".join(findings),
        _table(
            ("", "float", "quantized"),
            [
                ("file", before.name, after.name),
                (
                    "bytes",
                    str(before.num_bytes),
                    f"{after.num_bytes} ({after.num_bytes / max(before.num_bytes, 1):.1%})",
                ),
                ("opset", str(before.opset), str(after.opset)),
                ("sha256", f"`{before.sha256}`", f"`{after.sha256}`"),
            ],
        ),
    ]
    return "\n\n".join(line for line in lines if line)


def _accuracy(report: QuantReport) -> str:
    data = report.data
    kind = (
        "held out from the calibration set" if data.held_out else "given for verification, or shared with calibration"
    )
    rows = [
        (
            f"`{row.name}`",
            f"{row.sqnr_db:.2f}",
            f"{row.cosine:.6f}",
            "-" if row.agreement is None else share_text(row.agreement, data.num_verification),
            f"{row.max_abs_error:.4g}",
        )
        for row in report.proof.comparison.outputs
    ]
    text = f"## Accuracy\n\nOn {data.num_verification} samples {kind}.\n\n"
    text += _table(("output", "SQNR dB", "cosine", "agreement (95 % interval)", "largest error"), rows)
    labelled = [(row.name, f"{row.reference:.4f}", f"{row.value:.4f}") for row in report.proof.comparison.accuracies]
    return text + ("\n\n" + _table(("figure", "float", "quantized"), labelled) if labelled else "")


def _quantization(report: QuantReport) -> str:
    confounders = report.card()["quantization"]
    data = report.data
    rows = [
        (
            "calibration set",
            f"{data.description}, {data.num_calibration} samples{', RANDOM DATA' if data.is_random else ''}",
        ),
        ("calibration sha256", f"`{data.sha256}`"),
        ("target", f"{confounders['target']}: {confounders['why']}"),
        ("weights", _flat(confounders["weights"])),
        ("activations", _flat(confounders["activations"])),
        ("bias", _flat(confounders["bias"])),
        ("first and last layer", confounders["first_and_last_layer"]),
        ("accumulators", "32 bits"),
        ("extra MACs", _flat(confounders["extra_macs"])),
        ("exclusions", ", ".join(report.recipe.get("exclude", ())) or "none"),
        ("seed", str(report.recipe.get("seed", 0))),
        ("preparation", "; ".join(report.notes) or "nothing to change"),
        ("latency", confounders["latency"]),
    ]
    return "## How it was made\n\n" + _table(("what", "value"), rows)


def _kernels(report: QuantReport) -> str:
    kernels = report.proof.kernels
    rows = [(f"`{op}`", str(count), "integer kernel") for op, count in kernels.integer.items()]
    rows += [(f"`{op}`", str(count), "float between codes") for op, count in kernels.islands.items()]
    rows += [
        (f"`{op}`", str(count), "float, decodes its weight on every run") for op, count in kernels.fallbacks.items()
    ]
    rows.append(("Q and DQ", str(kernels.num_conversions), "conversions left"))
    return "## What onnxruntime runs\n\n" + _table(("operator", "count", "as"), rows)


def _layers(report: QuantReport) -> str:
    rows = [
        (
            f"`{shown_name(row.name, report.modules)}`",
            row.op_type,
            str(row.num_bits),
            str(row.num_weights),
            row.points or "1",
            f"{row.weight_sqnr_db:.1f}",
            f"{row.input_sqnr_db:.1f}",
            "" if row.output_sqnr_db is None else f"{row.output_sqnr_db:.1f}",
            "" if row.bound_db is None else f"{row.bound_db:.1f}",
            row.method,
            str(row.levels),
            f"{row.sparsity:.0%}",
            _share(row.spread),
            _share(report.spreads.get(row.grid)),
            str(row.bias_guarded),
            f"{row.accumulator / 2**31:.1%}" if row.accumulator else "",
        )
        for row in report.layers
    ]
    quality = ("weight SQNR dB", "input SQNR dB", "output SQNR dB", "bound dB")
    head = (
        "layer",
        "type",
        "bits",
        "weights",
        "points",
        *quality,
        "method",
        "levels",
        "zeros",
        "weights clipped",
        "inputs clipped",
        "guarded biases",
        "of 32 bits at most",
    )
    text = "## Layers\n\n" + _table(head, rows)
    modules = report.modules
    floats = [(f"`{shown_name(name, modules)}`", reason) for name, reason in sorted(report.left_float.items())]
    return text + ("\n\n### Left in float\n\n" + _table(("node", "why"), floats) if floats else "")


def _share(spread: Distribution | None) -> str:
    return "" if spread is None else f"{spread.clipped:.2%}"


def _again(report: QuantReport) -> str:
    recipe = recipe_toml({**report.recipe, "target": report.target.name})
    return f"## How to make it again\n\nWith `--recipe` and this file:\n\n```toml\n{recipe}```"


def _versions(report: QuantReport) -> str:
    return "Made with " + ", ".join(f"{name} {number}" for name, number in report.card()["versions"].items()) + "."


def _flat(table: dict[str, object]) -> str:
    return ", ".join(f"{key} {_method(value)}" for key, value in table.items())


def _method(value: object) -> object:
    """Write a method's table as it would be in code."""
    if not isinstance(value, dict):
        return value
    settings = ", ".join(f"{key}={setting}" for key, setting in value.items() if key != "method")
    return f"{value['method']}({settings})" if settings else value["method"]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])
