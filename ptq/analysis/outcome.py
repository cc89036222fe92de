"""Outcome of a run as one value, and the report made of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ptq.analysis.report import DataFacts, FileFacts, QuantReport
from ptq.analysis.storage import bytes_by_kind
from ptq.analysis.verdict import judge, judge_unchanged
from ptq.analysis.verify import Verification
from ptq.calibration.reader import DataReader
from ptq.calibration.split import SampleSplit
from ptq.core.distribution import Distribution
from ptq.core.layer_row import LayerRow
from ptq.core.plan import QuantPlan
from ptq.delivery.deliver import Delivery
from ptq.models.source import ModelSource, source_bytes, source_fingerprint
from ptq.passes import (
    Placement,
)
from ptq.passes.integer_lstm import INTEGER_LSTM
from ptq.passes.linear import name_of
from ptq.passes.native_bodies import DOMAIN as NATIVE_DOMAIN
from ptq.passes.stored import describe
from ptq.recipe import Recipe
from ptq.recipe.toml import recipe_to
from ptq.target import Target, host_target, target_named

Notes = tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Everything that a run ends with, before it is judged.

    Attributes:
        model: As it came.
        delivery: As it goes.
        placement: What became integers.
        rows: What became of each layer.
        notes: What else a user should know.
        proof: What was measured.
        data: On which data.
        equalized: Whether widths of channels were evened out.
        spreads: What was seen on each grid of activations.
        modules: Name of a node -> the module that it was exported from.
        unchanged: Whether the model goes as it came.
        stays_float: Whether nothing was to be quantized.
    """

    model: ir.Model
    delivery: Delivery
    placement: Placement
    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...]
    proof: Verification
    data: DataFacts
    equalized: bool = False
    spreads: Mapping[str, Distribution] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    unchanged: bool = False
    stays_float: bool = False


def report_of(source: ModelSource, recipe: Recipe, outcome: Outcome, start: float) -> QuantReport:
    """Judge a run that began at `start`, and put everything into one value."""
    delivery = outcome.delivery
    hashed = source_fingerprint(source, outcome.model)
    facts = FileFacts(_name(source), hashed, source_bytes(source, outcome.model), _opset(outcome.model))
    sizes = (facts.num_bytes, delivery.num_bytes)
    judged = judge_unchanged(outcome.proof, recipe.goals)
    if not outcome.unchanged:
        rows = None if outcome.stays_float else outcome.rows
        judged = judge(outcome.proof, rows, sizes, recipe, random_data=outcome.data.is_random)
    return QuantReport(
        float_model=facts,
        quantized_model=FileFacts("", delivery.fingerprint, delivery.num_bytes, _opset(delivery.model)),
        data=outcome.data,
        recipe=recipe_to(recipe),
        target=target_named(recipe.target),
        layers=outcome.rows,
        left_float=outcome.placement.reasons,
        modules=_named(outcome),
        num_grids=len(outcome.placement.groups),
        spreads=outcome.spreads,
        equalized=outcome.equalized,
        storage=bytes_by_kind(delivery.model, delivery.num_bytes),
        notes=outcome.notes,
        proof=outcome.proof,
        verdict=judged,
        seconds=time.perf_counter() - start,
        peak_rss_mb=peak_rss_mb(),
        unchanged=outcome.unchanged,
    )


def _named(outcome: Outcome) -> dict[str, str]:
    """Return the modules of those nodes that a report names."""
    names = {*(row.name for row in outcome.rows), *outcome.placement.left_float}
    return {name: module for name, module in outcome.modules.items() if name in names}


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's, this peak does not start with that of the parent process
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0][1]) / 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def notes_of(data: DataReader, model: ir.Model, placement: Placement, plan: QuantPlan, lowered: ir.Model) -> Notes:
    """List what a user should know of a lowered model.

    Args:
        data: The calibration set.
        model: Prepared float model.
        placement: What became integers.
        plan: What it became.
        lowered: The model that is delivered.
    """
    return (*_skipped(data), *_tables(placement, plan), *_stored(model, placement, plan, lowered), *_native(lowered))


def overflow_note(target: Target) -> Notes:
    """Return a note if this machine's sums of bytes may overflow where the target's do not."""
    overflows = host_target().saturates and not target.saturates
    return (f"made for {target.name}, measured on a processor whose sums may overflow",) if overflows else ()


def _skipped(data: DataReader) -> tuple[str, ...]:
    """Return a note on samples that were left out, if any were."""
    return (f"{len(data.skipped)} samples skipped, the first: {data.skipped[0]}",) if data.skipped else ()


def _tables(placement: Placement, plan: QuantPlan) -> tuple[str, ...]:
    """Return a note on each embedding table on codes."""
    return tuple(
        f"embedding table {table.name}: {table.shape[0]} rows on {plan.weights[table.name].num_bits} bits"
        for table in placement.tables
    )


def _stored(model: ir.Model, placement: Placement, plan: QuantPlan, lowered: ir.Model) -> tuple[str, ...]:
    """Return notes on weights on codes that are not those of layers."""
    lengths = {plan.weights[weight.name].num_bits for weight in placement.stored}
    on_integers = {name_of(node) for node in lowered.graph if node.op_type == INTEGER_LSTM}
    return tuple(describe(model, placement.stored, bits, on_integers) for bits in lengths)


def _native(lowered: ir.Model) -> tuple[str, ...]:
    """Return a note on operators of our own, if there are any."""
    count = sum(node.domain == NATIVE_DOMAIN for node in lowered.graph)
    carried = f"{count} operators of domain {NATIVE_DOMAIN}, each with a body of standard ones for other machines"
    return (carried,) if count else ()


def data_facts(data: DataReader, split: SampleSplit, proof: Verification, *, evaluated: bool = False) -> DataFacts:
    """Describe the data that the figures are from."""
    return DataFacts(
        data.description,
        split.fingerprint,
        split.num_calibration,
        proof.comparison.num_samples,
        held_out=bool(split.held_out) or evaluated,
        is_random=data.is_random,
    )


def _name(source: ModelSource) -> str:
    return Path(source).name if isinstance(source, str | Path) else "model in memory"


def _opset(model: ir.Model) -> int:
    return model.opset_imports.get("", 0)
