"""Inspection of a model: what it is, and what quantization would do to it; data only adds what activations do."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.allocation.islands import find_islands
from ptq.calibration.collect import collect
from ptq.calibration.reader import open_data
from ptq.calibration.statistics import HistogramOf
from ptq.core.arrays import Feed
from ptq.core.statistics import Histogram
from ptq.given.find import given_integers
from ptq.inspection.cost import Work, ram_bytes_for, run_seconds, seconds_for
from ptq.inspection.footprint import file_bytes, huge_file_bytes
from ptq.inspection.layers import Known, describe_layers, linear_layers
from ptq.inspection.sizes import fitting_sample
from ptq.inspection.tree import module_tree
from ptq.models.load import load_model
from ptq.models.probe import require_survivable
from ptq.models.sessions import naming
from ptq.models.source import ModelSource, input_specs, runnable_source, source_bytes, weight_bytes
from ptq.passes import place, place_weights, prepare
from ptq.passes.infer_shapes import known_sizes, output_sizes, shapes_on
from ptq.passes.modules import noted_scopes
from ptq.passes.placement import Placement
from ptq.recipe import Recipe
from ptq.solving.cost import seconds_to_solve
from ptq.solving.grids import per_value
from ptq.streaming.solve import needs_streaming, prepare_streaming, streaming_bytes
from ptq.target import Target, target_named

PROPOSED_ON = 4
"""Number of samples whose activations are looked at."""

ESTIMATED_BITS = (8, 4)
QUANTIZED = "already quantized: it would be delivered as it came, or completed where it is float"


def inspect_model(
    source: ModelSource, custom_ops: Sequence[str | Path] = (), *, target: str | None = None, data: Any = None
) -> dict[str, Any]:
    """Describe a float model.

    Args:
        source: The model.
        custom_ops: Libraries it needs.
        target: What it would be quantized for; None is this machine.
        data: Calibration set as for `ptq.quantize`, of which a few samples are run; None means one random sample.

    Returns:
        Inputs, outputs, operators, modules, linear layers with what becomes of each, and estimates: bytes of the
        quantized file, memory and seconds. Ready for JSON; null stands for what was not looked at.

    Raises:
        PtqError: The model or the data cannot be read or run.
    """
    wanted, model = target_named(Recipe(target=target).target), load_model(source)
    with naming(source):
        known = _look_at_huge(model) if needs_streaming(model) else _look_at(model, tuple(custom_ops), wanted, data)
    layers = linear_layers(known.prepared)
    bits = {layer.name: wanted.weight.num_bits for layer in known.placement.layers}
    facts = Known(known.sizes, bits, known.placement.reasons, known.histograms)
    rows = describe_layers(known.prepared, layers, facts, read_weights=not known.huge)
    tree = module_tree(known.prepared, [row.name for row in rows], noted_scopes(model))
    paths, operators = tree.paths(), Counter(node.op_type for node in model.graph)
    return {
        "inputs": [str(spec) for spec in input_specs(model)],
        "outputs": [str(value.name) for value in model.graph.outputs],
        "opset": model.opset_imports.get("", 0),
        "producer": model.producer_name or "unknown",
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "file_bytes": source_bytes(source, model),
        "weight_bytes": weight_bytes(model),
        "target": wanted.name,
        "weight_only": known.huge,
        "preparation": [*(() if given_integers(model) is None else (QUANTIZED,)), *known.notes],
        "modules": tree.facts(),
        "layers": [{"module": paths[row.name], **asdict(row)} for row in rows],
        "tables": [table.name for table in known.placement.tables],
        "left_float": dict(sorted(known.placement.reasons.items())),
        "sample": known.sample,
        "estimate": known.estimate,
    }


@dataclass(frozen=True)
class _Look:
    """Results of looking at a model.

    Attributes:
        prepared: The model in normal form.
        placement: What becomes integers.
        notes: What preparation did.
        sizes: Layer -> numbers in its output.
        histograms: Value -> what was seen of it.
        sample: Shapes of what was run.
        estimate: Bytes, memory, seconds.
        huge: Whether it is too large to be run.
    """

    prepared: ir.Model
    placement: Placement
    notes: tuple[str, ...]
    sizes: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    sample: Mapping[str, list[int]]
    estimate: Mapping[str, Any]
    huge: bool = False


def _look_at_huge(model: ir.Model) -> _Look:
    """Look at a model without running it or reading its weights."""
    prepared = prepare_streaming(model)
    placement = place_weights(prepared)
    note = "too large to be held in memory: quantized layer by layer, weights alone (--weight-only)"
    sizes = {f"int{bits}": huge_file_bytes(prepared, placement, bits) for bits in ESTIMATED_BITS}
    unknown = dict.fromkeys(("seconds", "run_seconds", "num_samples"))
    estimate = {"file_bytes": sizes, "ram_bytes": streaming_bytes(prepared), **unknown}
    known = known_sizes(prepared, [layer.name for layer in placement.layers])
    return _Look(prepared, placement, (note,), known, {}, {}, estimate, huge=True)


def _look_at(model: ir.Model, custom_ops: tuple[str | Path, ...], target: Target, data: Any) -> _Look:
    """Look at a model by running a sample, and with data a few more."""
    specs = input_specs(model)
    reader = None if data is None else open_data(data, specs)
    if reader is None:
        feeds = [fitting_sample(model, custom_ops)]
    else:
        feeds = [sample.feed for sample in itertools.islice(reader, PROPOSED_ON)]
        require_survivable(runnable_source(model, model), feeds[0], custom_ops)
    start = time.perf_counter()
    prepared, notes = prepare(model, feeds[0], custom_ops=custom_ops, proven=False)
    spent = time.perf_counter() - start
    placement = _placed(prepared, target, feeds[0], custom_ops)
    inputs = {str(value.name) for value in prepared.graph.inputs}
    layers, observed = [layer.name for layer in linear_layers(prepared)], [*placement.sources]
    made = [name for name in dict.fromkeys([*layers, *observed]) if name not in inputs]
    sizes = output_sizes(prepared, made, feeds[0], custom_ops)
    histograms: Mapping[str, Histogram] = {}
    if reader is not None:
        seen = collect(prepared, feeds, dict.fromkeys(observed, (HistogramOf(),)), custom_ops=custom_ops)
        histograms = per_value(placement, seen.statistics.histograms)
    convs = sum(layer.op_type == "Conv" for layer in placement.layers)
    num_samples = Recipe().samples if reader is None else reader.num_samples or Recipe().samples
    timed = run_seconds(prepared, feeds[0], custom_ops)
    work = Work(
        num_samples,
        sum(sizes.get(name, 0) for name in observed),
        len(observed),
        convs,
        len(placement.layers) - convs,
        spent,
        timed,
        seconds_to_solve(placement.layers, num_samples, timed),
    )
    estimate = _estimate(prepared, placement, target, work, feeds[0])
    shapes = {name: list(array.shape) for name, array in feeds[0].items()}
    return _Look(prepared, placement, notes, {n: sizes[n] for n in layers}, histograms, shapes, estimate)


def _placed(model: ir.Model, target: Target, feed: Feed, custom_ops: tuple[str | Path, ...]) -> Placement:
    """Place integers as a run does that nothing else is asked of."""

    def placed(floats: Mapping[str, str]) -> Placement:
        return place(model, native=target.native, floats=floats)

    if target.costs is None:
        return placed({})
    return placed(find_islands(model, placed, shapes_on(model, feed, custom_ops), target.costs).floats)


def _estimate(
    model: ir.Model, placement: Placement, target: Target, work: Work, feed: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    return {
        "file_bytes": {f"int{bits}": file_bytes(model, placement, target, bits) for bits in ESTIMATED_BITS},
        "ram_bytes": ram_bytes_for(work, model, feed),
        "seconds": seconds_for(work, model),
        "run_seconds": work.run_seconds,
        "num_samples": work.num_samples,
    }
