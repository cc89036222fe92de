"""Verification of a streamed model: the delivered file whole, the float model segment by segment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq.analysis.bench import read_profile
from ptq.analysis.compare import Comparison
from ptq.analysis.kernels import LINEAR_KERNELS, Kernels
from ptq.analysis.latency import Latency
from ptq.analysis.metrics import OutputComparison
from ptq.analysis.verify import Verification
from ptq.calibration.reader import Sample
from ptq.calibration.segments import SegmentedRun
from ptq.calibration.store import ArrayStore
from ptq.core.layer_row import LayerRow
from ptq.files.scratch import scratch_folder
from ptq.models.sessions import run
from ptq.models.source import INLINE_BYTES
from ptq.passes.infer_shapes import known_sizes
from ptq.runtime.opening import open_session
from ptq.streaming.solve import COMPARED, Streamed


def verify_streamed(
    prepared: ir.Model, streamed: Streamed, path: Path, samples: list[Sample]
) -> tuple[Verification, tuple[LayerRow, ...]]:
    """Run the delivered file, and the float model segment by segment, never both at once.

    Args:
        prepared: Float model.
        streamed: Model in integers that it became.
        path: File of the quantized model.
        samples: Samples to compare on.

    Returns:
        Outputs, kernels and the quantized model's time; the float model, read from disk piece by piece, has none. And
        the rows with their products, as only a run tells at how many positions a layer is computed.
    """
    chosen = samples[:COMPARED]
    outputs = tuple(str(value.name) for value in prepared.graph.outputs)
    found, value_ms, counts = _run_once(path, chosen, outputs)
    with ArrayStore(INLINE_BYTES // 8) as store:
        stops = [(layer.name,) for layer in streamed.placement.layers]
        walk = SegmentedRun(prepared, [*stops, outputs], store, "float")
        for sample in chosen:
            walk.feed(sample.feed)
        seen = {}
        for (name,) in stops:
            (first,), *_ = walk.advance()  # every sample has to pass
            seen[name] = first.size
        real = list(walk.advance())
        walk.close()
    rows = [OutputComparison(name) for name in outputs]
    for a, b in zip(real, found, strict=True):
        for row, x, y in zip(rows, a, b, strict=True):
            row.update(x, y)
    integer = {name: count for name, count in sorted(counts.items()) if name in LINEAR_KERNELS}
    kernels = Kernels(integer, sum(integer.values()), counts.get("DequantizeLinear", 0), {}, {})
    batch = next(iter(chosen[0].feed.values())).shape
    latency = Latency(0.0, value_ms, len(chosen), int(batch[0]) if batch else 1)
    sizes = seen | known_sizes(prepared, list(seen))
    fan_in = {layer.name: layer.fan_in for layer in streamed.placement.layers}
    counted = tuple(replace(row, num_macs=sizes[row.name] * fan_in[row.name]) for row in streamed.rows)
    return Verification(
        Comparison(tuple(each for row in rows for each in row.rows()), (), len(chosen)), kernels, latency
    ), counted


def _run_once(
    path: Path, samples: Sequence[Sample], outputs: Sequence[str]
) -> tuple[list[list[NDArray[Any]]], float, dict[str, int]]:
    """Return outputs, processor time per sample in ms, and kernels, out of one session: a second would be as large."""
    with scratch_folder() as folder:
        session = open_session(path, profile_prefix=Path(folder) / "profile")
        run(session, dict(samples[0].feed))
        start = time.process_time()
        results = [run(session, dict(sample.feed), outputs) for sample in samples]
        spent = (time.process_time() - start) / len(samples) * 1e3
        counts = {name: count for name, (count, _) in read_profile(Path(session.end_profiling())).items()}
    return results, spent, counts
