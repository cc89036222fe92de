"""What a run works on, and what it gives."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ptq.analysis.card import card_markdown
from ptq.analysis.compare import Metric
from ptq.analysis.report import QuantReport
from ptq.calibration.executor import Executor, Threads
from ptq.calibration.reader import DataReader
from ptq.calibration.shards import CalibrationShards
from ptq.delivery.checkpoints import Workspace
from ptq.delivery.deliver import Delivery, deliver
from ptq.models.source import ModelSource
from ptq.recipe import Recipe
from ptq.runtime.opening import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


@dataclass(frozen=True)
class Result:
    """A finished run; nothing is on disk yet.

    Attributes:
        delivery: The quantized model.
        report: What happened; `report.verdict.passed` says whether every goal was met.
        custom_ops: Libraries the model needs.
        workspace: Where an interrupted run would have gone on from; None if there was none.
    """

    delivery: Delivery
    report: QuantReport
    custom_ops: tuple[str | Path, ...] = ()
    workspace: Workspace | None = None

    def save(self, path: str | Path) -> None:
        """Write the model to `path` and its card beside it (`path` + .card.json, .card.md): all or nothing.

        Raises:
            InputError: A file cannot be written; what was there before is still there.
        """
        deliver(Path(path), self.delivery, cards_of(self.report, Path(path)))

    def session(self) -> InferenceSession:
        """Open the quantized model in onnxruntime."""
        with self.delivery.as_file() as path:
            return open_session(path, custom_ops=self.custom_ops, num_threads=0)


def cards_of(report: QuantReport, output: Path) -> dict[str, bytes]:
    """The card of a model at `output` as JSON and Markdown, and what was measured; by the suffixes of their paths."""
    named = replace(report, quantized_model=replace(report.quantized_model, name=output.name))
    bench = json.dumps(named.bench(), indent=2, sort_keys=True) + "\n"
    texts = {".card.json": named.card_json(), ".card.md": card_markdown(named), ".bench.json": bench}
    return {suffix: text.encode() for suffix, text in texts.items()}


@dataclass(frozen=True)
class Job:
    """What one run works on.

    Attributes:
        source: The float model as it came.
        data: The calibration set.
        recipe: Decisions.
        evaluation: Data to verify on. Default: every eighth calibration sample is held out for it.
        custom_ops: Libraries with operators that the model needs.
        metric: Name and function of a user metric.
        workspace: Folder in which a model too large for memory is built, and from which an interrupted run goes on;
            None for a temporary one.
        engine: Where the calibration set is run.
        ledger: Which parts of it were run before.
        profiled: Also measure which operators the time of both models goes to.
    """

    source: ModelSource
    data: DataReader
    recipe: Recipe = field(default_factory=Recipe)
    evaluation: DataReader | None = None
    custom_ops: tuple[str | Path, ...] = ()
    metric: tuple[str, Metric] | None = None
    workspace: Path | None = None
    engine: Executor = field(default_factory=Threads)
    ledger: CalibrationShards = field(default_factory=CalibrationShards)
    profiled: bool = False
