"""Display of results in the terminal. Reads reports, decides nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ptq.analysis.bench import Bench
from ptq.analysis.diff import Diff
from ptq.analysis.report import QuantReport
from ptq.analysis.verdict import Verdict, sentence
from ptq.api import Validation
from ptq.calibration.observers import Observer
from ptq.core.family import describe_method, members
from ptq.core.interval import share_text
from ptq.core.printable import printable
from ptq.delivery.deliver import REJECTED
from ptq.display.inspection import (
    LEGEND,
    MOST_ROWS,
    operators_of,
    reasons_of,
    size_of,
    summary_of,
    tree_rows,
    tree_table,
)
from ptq.display.progress import Steps
from ptq.passes.modules import shown_name
from ptq.runtime.native import native_status
from ptq.weights import WeightMethod

UNBOUNDED = 10_000
"""Columns of a line that goes to a pipe."""

INDENT = 14
"""Columns that say what a line is about."""


LAYERS_SHOWN = 20
"""Rows of the table of `ptq diff`."""


class Words(Console):
    """A console that leaves a broken pipe to the command line, which knows the exit code."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, for the command line to handle."""
        raise BrokenPipeError


class Display:
    """A terminal: results go to stdout, progress to stderr; nothing of either when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        if isinstance(sys.stdout, io.TextIOWrapper):  # names that an old terminal has no letters for are no bugs
            sys.stdout.reconfigure(errors="backslashreplace")
        self._out = Words(quiet=quiet, highlight=False)
        if not self._out.is_terminal:
            self._out.width = UNBOUNDED
        self._err = Console(stderr=True, quiet=quiet, highlight=False)
        self._always = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def steps(self) -> Iterator[Steps]:
        """Show which step runs and how far it is; in a terminal only."""
        with self._err.status("reading") as status:
            yield Steps(
                lambda line: status.update(Text(line, no_wrap=True, overflow="ellipsis")),
                say=lambda line: self._err.print(escape(line)),
            )

    def line(self, text: str) -> None:
        """Print one line of text."""
        self._out.print(escape(text))

    def result(self, report: QuantReport, output: Path, page: Path | None = None) -> None:
        """Print the end of a run: figures, findings, verdict."""
        data, kernels, latency = report.data, report.proof.kernels, report.proof.latency
        kind = "held-out samples" if data.held_out else "samples it was calibrated on"
        before, after = report.float_model.num_bytes, report.quantized_model.num_bytes
        row = self._row
        row("model", f"{report.float_model.name}, opset {report.float_model.opset}; target {report.target.name}")
        for note in report.notes:
            row("", note)
        row("calibration", f"{data.description}: {data.num_calibration} samples, {report.num_grids} activation grids")
        how = "with integer weights" if report.recipe.get("weight_only") else "on integers"
        stays = not report.layers and not report.left_float
        done = "as they came" if report.unchanged else "all in float" if stays else f"{len(report.layers)} {how}"
        row("layers", f"{done}, {len(report.left_float)} left in float{self._why(report)}")
        row(
            "kernels",
            f"{kernels.num_linear} linear layers fused, {kernels.num_conversions} conversions{self._islands(report)}",
        )
        sums = report.extra_macs()
        if sums["layers"]:
            row(
                "sums",
                f"in {sums['layers']} layers, {sums['share']:.1%} more products, {sums['executed']:.1%} executed",
            )
        for output_row in report.proof.comparison.outputs:
            share = output_row.agreement
            agreement = "" if share is None else f", agreement {share_text(share, data.num_verification)}"
            figures = f"SQNR {output_row.sqnr_db:.2f} dB, cosine {output_row.cosine:.6f}{agreement}"
            row("accuracy", f"{figures} ({output_row.name}, {data.num_verification} {kind})")
        for score in report.proof.comparison.accuracies:
            row(score.name, f"{score.reference:.4f} -> {score.value:.4f}")
        parts = ", ".join(f"{kind} {size_of(count)}" for kind, count in report.storage.items())
        row("size", f"{size_of(before)} -> {size_of(after)} ({after / max(before, 1):.0%}): {parts}")
        where = f"one thread, batch {latency.batch}"
        if latency.reference_ms > 0:
            ratio = f"(x{latency.ratio:.2f}, {where})"
            row("latency", f"{latency.reference_ms:.3f} -> {latency.value_ms:.3f} ms {ratio}")
        else:
            row("latency", f"{latency.value_ms:.3f} ms ({where}; float was too large to be timed)")
        row("cost", f"{report.seconds:.1f} s, peak memory {report.peak_rss_mb:.0f} MB")
        for plan in report.plans:
            row("tried", f"{plan.name}: {plan.milliseconds:.3f} ms")
        for each in report.tries:
            met = "goal met" if each.passed else "missed"
            row("tried", f"{each.name}: {each.sqnr_db:.2f} dB, {size_of(each.num_bytes)}, {met}")
        beside = f"{output.name}.card.md" + (f", report in {page}" if page else "")
        withheld = f"no model at {output}; what came out is {output.name}{REJECTED}; see {beside}"
        self.verdict(report.verdict, f"{output}, card in {beside}", withheld)

    def verdict(self, verdict: Verdict, delivered: str, withheld: str) -> None:
        """Print findings, then the one line that counts. What keeps a model from passing shows even when quiet."""
        for finding in verdict.findings:
            console = self._always if finding.level in ("missed", "poor") and self._quiet else self._out
            color = "yellow" if finding.level in ("repaired", "warning") else "red"
            console.print(f"[bold {color}]{finding.level}[/]: {_shown(finding.text)}")
        line = _shown(sentence(verdict.word, verdict.num_goals, verdict.floor))
        if verdict.passed:
            style = "bold green" if verdict.word == "goals met" else "bold"
            self._out.print(f"[{style}]verdict: {line}[/] -> {_shown(delivered)}")
        else:
            console = self._always if self._quiet else self._out
            console.print(f"[bold red]verdict: {line}[/], {_shown(withheld)}")

    def validation(self, validation: Validation) -> None:
        """Print two models side by side."""
        comparison, latency = validation.comparison, validation.latency
        table = _figures("output", "SQNR dB", "cosine", "agreement", "largest error")
        for row in comparison.outputs:
            agreement = "-" if row.agreement is None else share_text(row.agreement, comparison.num_samples)
            table.add_row(
                _shown(row.name), f"{row.sqnr_db:.2f}", f"{row.cosine:.6f}", agreement, f"{row.max_abs_error:.4g}"
            )
        self._out.print(table)
        for score in comparison.accuracies:
            self._row(score.name, f"{score.reference:.4f} -> {score.value:.4f}")
        for note in comparison.notes:
            self._row("", note)
        times = f"{latency.reference_ms:.3f} -> {latency.value_ms:.3f} ms (x{latency.ratio:.2f}, one thread)"
        self._row("latency", times)
        compared = f"{comparison.num_samples} samples compared"
        self.verdict(validation.verdict, compared, compared)

    def bench(self, timed: Bench, profiles: Sequence[Mapping[str, tuple[int, float]]]) -> None:
        """Print timings, and where the time goes."""
        table = _figures("model", "p50 ms", "p90 ms", "CPU ms", "x first")
        for row in timed.timings:
            table.add_row(_shown(row.name), f"{row.p50:.3f}", f"{row.p90:.3f}", f"{row.cpu:.3f}", f"{row.ratio:.3f}")
        self._out.print(table)
        threads = f"{timed.num_threads} thread{'s' * (timed.num_threads != 1)}"
        setting = f"batch {timed.batch}, {threads}, {timed.num_rounds} interleaved rounds"
        self._out.print(f"{setting}; CPU is processor time, which x first compares; {_shown(native_status())}")
        for row, operators in zip(timed.timings, profiles, strict=False):
            total = max(sum(each for _, each in operators.values()), 1e-9)
            table = _figures(_shown(row.name), "nodes", "ms", "share")
            for name, (count, spent) in operators.items():
                table.add_row(_shown(name), str(count), f"{spent:.4f}", f"{spent / total:.0%}")
            self._out.print(table)

    def diff(self, result: Diff) -> None:
        """Print which layers cost accuracy, and what mends them."""
        self._row(
            "outputs", f"SQNR {result.sqnr_db:.2f} dB, cosine {result.cosine:.6f} over {result.num_samples} samples"
        )
        self._row("worst", ", ".join(f"sample {each.index}: {each.sqnr_db:.2f} dB" for each in result.worst))
        if result.float_sqnr_db is not None:
            how = f"shares of the error are from {result.num_shared} samples"
            self._row(
                "restored", f"with every layer in float {result.float_sqnr_db:.1f} dB from the float model; {how}"
            )
        for note in result.notes:
            self._row("", note)
        table = _figures("layer", "operator", "SQNR dB", "cosine", "alone", "restored")
        modules = {row.name: row.module for row in result.layers}
        for row in result.layers[:LAYERS_SHOWN]:
            shares = ["-" if share is None else f"{share:.1%}" for share in (row.alone, row.restored)]
            table.add_row(
                _shown(shown_name(row.name, modules)), row.op_type, f"{row.sqnr_db:.2f}", f"{row.cosine:.6f}", *shares
            )
        self._out.print(table)
        if len(result.layers) > LAYERS_SHOWN:
            self._row("", f"{len(result.layers) - LAYERS_SHOWN} more layers with --json")
        for finding in result.findings:
            share = "time" if finding.alone is None else f"{finding.share:.0%} of the error"
            what = f"{_shown(shown_name(finding.layer, modules))}, {share}: {_shown(finding.text)}"
            self._out.print(f"[bold yellow]{_shown(finding.kind)}[/] {what}")
            self._out.print(f"  {_shown(finding.command)}")

    def inspection(self, name: str, facts: dict[str, Any]) -> None:
        """Print what `ptq inspect` found."""
        weights = f"{facts['modules']['parameters']:,} weights in {size_of(facts['file_bytes'])}"
        self._row("model", f"{name}: {weights}, opset {facts['opset']}, made by {facts['producer']}")
        for key in ("inputs", "outputs"):
            self._row(key, "; ".join(facts[key]))
        self._row("operators", operators_of(facts["operators"]))
        for note in facts["preparation"]:
            self._row("", note)
        rows = tree_rows(facts)
        self._out.print()
        self._out.print(tree_table(rows[:MOST_ROWS], self._out.width if self._out.is_terminal else None))
        if len(rows) > MOST_ROWS:
            self._out.print(f"... and {len(rows) - MOST_ROWS} more; --json lists all")
        self._out.print(f"[dim]{LEGEND}[/]\n")
        for line in reasons_of(facts["left_float"]):
            self._row("left in float", line)
        for key, text in summary_of(facts):
            self._row(key, text)

    def methods(self) -> None:
        """Print every family with its members."""
        for title, union in (
            ("activation observers (--activations)", Observer),
            ("weight methods (--weights)", WeightMethod),
        ):
            self._out.print(f"[bold]{title}[/]")
            for member in members(union):
                tag, settings, summary = describe_method(member)
                self._hang(Text(f"  {tag}"), Text(summary).append(f" ({settings})" if settings else "", "dim"))

    def _row(self, key: str, text: str) -> None:
        self._hang(Text(key, "dim"), Text(printable(text)))

    def _hang(self, head: Text, text: Text) -> None:
        """Print a line behind what it is about; in a terminal its further parts stand below its first."""
        grid = Table.grid()
        grid.add_column(width=INDENT)
        grid.add_column(overflow="fold")
        grid.add_row(head, text)
        self._out.print(grid)

    def _why(self, report: QuantReport) -> str:
        if not report.left_float:
            return ""
        name, reason = next(iter(sorted(report.left_float.items())))
        more = len(report.left_float) - 1
        name = shown_name(name, report.modules)
        return f" ({name}: {reason}{f'; {more} more in the card' if more else ''})"

    def _islands(self, report: QuantReport) -> str:
        islands = report.proof.kernels.islands
        return (
            f", float islands: {', '.join(f'{n} {op}' for op, n in islands.items())}"
            if islands
            else ", no float island"
        )


def validation_table(validation: Validation) -> dict[str, Any]:
    """Return a validation as a table that is ready for JSON."""
    comparison = validation.comparison
    return {
        "passed": validation.verdict.passed,
        "word": validation.verdict.word,
        "floor": validation.verdict.floor,
        "latency": {**asdict(validation.latency), "ratio": validation.latency.ratio},
        "outputs": [asdict(row) for row in comparison.outputs],
        "labelled": [asdict(row) for row in comparison.accuracies],
        "num_samples": comparison.num_samples,
        "notes": list(comparison.notes),
    }


def bench_table(timed: Bench, profiles: Sequence[Mapping[str, tuple[int, float]]]) -> dict[str, Any]:
    """Return timings as a table that is ready for JSON."""
    rows = [asdict(row) for row in timed.timings]
    for row, operators in zip(rows, profiles, strict=False):
        row["operators"] = {name: {"nodes": count, "ms": spent} for name, (count, spent) in operators.items()}
    setting = {"rounds": timed.num_rounds, "batch": timed.batch, "threads": timed.num_threads}
    return {"models": rows, **setting, "native": native_status()}


def _figures(first: str, *titles: str) -> Table:
    """Make a table of names and figures."""
    table = Table(first, box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _shown(text: str) -> str:
    """Escape text of any origin for use within markup."""
    return escape(printable(text))
