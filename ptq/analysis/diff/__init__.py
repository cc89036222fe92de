"""Origin of a quantized model's error: layer by layer, with what to do about it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ptq.analysis.compare import pair_outputs
from ptq.analysis.decided import told_pair
from ptq.analysis.diff.board import Site, Switchboard
from ptq.analysis.diff.causes import Finding, Names, explain, share_of, speed_findings
from ptq.analysis.diff.kinds import exposed_codes, integer_operators, require_pair, shared_values
from ptq.analysis.diff.measure import Measured, Outputs, Panel, Tally, keys_of, look, measure, parts_of, settle
from ptq.analysis.diff.names import FloatNodes
from ptq.analysis.diff.switches import switchboard
from ptq.analysis.diff.weights import restore
from ptq.analysis.kernels import Kernels, count_kernels
from ptq.calibration.reader import Sample
from ptq.core.arrays import Feed
from ptq.files.scratch import scratch_folder
from ptq.models.load import load_model
from ptq.models.sessions import naming, run, session_of
from ptq.models.source import ModelSource, runnable_source
from ptq.passes import PREPARE, PadChannels, prepare
from ptq.passes.channels.removed import refitted_in, without_removed
from ptq.passes.infer_shapes import exposed
from ptq.passes.linear import name_of
from ptq.passes.modules import Handles, modules_of

SHARED = 16
"""Samples that shares are measured on: two runs per layer each."""

WORST, LISTED = 5, 3
EXPLAINED, SUSPECTS = 0.02, 10
"""Share of the error from which on a layer is a finding, and how many findings are looked at."""

WITHOUT_PAIRS = (
    "no Q/DQ pair or decoded weight in this model can be switched between float and codes: layers are compared by "
    "name, without shares"
)
APART_DB = 10.0
"""How much nearer than the quantized model the float network inside it has to be to the float model."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class LayerDiff:
    """Contribution of one layer to the error of a quantized model.

    Attributes:
        name: Its name in the float model, as `--layer` and `--exclude` take it; of an input, the input's.
        op_type: Its operator.
        sqnr_db: Of its result against float, everything before it rounded too, dB.
        cosine: Of its result and float's.
        alone: Final error with only this layer rounded, over the final error; None where nothing can be switched.
        restored: Part of the final error that goes with this layer in float; negative where errors cancel.
        share: Mean of the two, each within 0 and 1.
        of_weights: The part of it that is its constants'; None where that was not measured by itself.
        of_grids: The part of its grids, likewise.
        has_grids: Whether its result is rounded.
        readers: Layers that read its result.
        module: The module that it was exported from; empty if that is unknown.
        is_new: Whether the float model has no node of that name, which `--layer` and `--exclude` then do not take.
    """

    name: str
    op_type: str
    sqnr_db: float
    cosine: float
    alone: float | None = None
    restored: float | None = None
    share: float | None = None
    of_weights: float | None = None
    of_grids: float | None = None
    has_grids: bool = False
    readers: tuple[str, ...] = ()
    module: str = ""
    is_new: bool = False


@dataclass(frozen=True)
class WorstSample:
    """A sample on which the models differ most.

    Attributes:
        index: Its place in the data, from 0.
        sqnr_db: Of the outputs on it, dB.
    """

    index: int
    sqnr_db: float


@dataclass(frozen=True)
class Diff:
    """Comparison of two models, layer by layer.

    Attributes:
        sqnr_db: Of the outputs over all samples, dB.
        cosine: Likewise; of all outputs.
        num_samples: Samples compared.
        num_shared: Samples behind the shares.
        float_sqnr_db: How near the quantized model comes to the float one with every switch at float, dB; None where
            nothing can be switched. What is missing is not explained by the shares.
        findings: What can be mended, the greatest share first.
        layers: Every layer, the greatest share first.
        worst: Samples with the lowest SQNR.
        notes: What could not be compared, and why.
    """

    sqnr_db: float
    cosine: float
    num_samples: int
    num_shared: int
    float_sqnr_db: float | None
    findings: tuple[Finding, ...]
    layers: tuple[LayerDiff, ...]
    worst: tuple[WorstSample, ...]
    notes: tuple[str, ...]


@dataclass
class Whole:
    """Running sums over the two models as they are."""

    outputs: Outputs = field(default_factory=Outputs)
    lowest: list[tuple[float, int]] = field(default_factory=list)
    count: int = 0

    def update(self, reference: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]]) -> None:
        """Add the outputs of both models on one sample."""
        self.outputs.update(reference, values)
        single = Outputs()
        single.update(reference, values)
        heapq.heappush(self.lowest, (-single.sqnr_db, -self.count))
        self.lowest = heapq.nlargest(WORST, self.lowest)
        self.count += 1


@dataclass(frozen=True)
class Pair:
    """The two models that are compared.

    Attributes:
        reference: The float model.
        quantized: The quantized model.
        names: How the user calls them.
        custom_ops: Libraries they need.
    """

    reference: ModelSource
    quantized: ModelSource
    names: Names
    custom_ops: tuple[str | Path, ...] = ()


def diff(pair: Pair, samples: Iterable[Sample], say: Say = lambda _step: None, divided: int = SUSPECTS) -> Diff:
    """Find out which layers of a quantized model cost its accuracy.

    Args:
        pair: The models.
        samples: Data, consumed once; never more than `SHARED` samples are held.
        say: Called with the name of each step.
        divided: Sites, the most costly ones, whose constants and grids are told apart.

    Returns:
        The comparison.

    Raises:
        InputError: The models cannot be compared; the message says why.
    """
    reference, quantized = load_model(pair.reference), load_model(pair.quantized)
    require_pair(reference, quantized, pair.names)
    stream = iter(samples)
    few = list(itertools.islice(stream, SHARED))
    with ExitStack() as stack:

        def opened(model: ir.Model) -> InferenceSession:
            return stack.enter_context(session_of(model, custom_ops=pair.custom_ops))

        with naming(pair.reference):
            told = told_pair(reference, quantized, few[0].feed, opened)
        given = pair if told.other is quantized else replace(pair, reference=told.reference, quantized=told.other)
        found = _diff(given, [told.tell(sample) for sample in few], map(told.tell, stream), say, divided)
    speed = speed_findings(_kernels(pair, quantized), pair.names)
    return replace(found, findings=(*found.findings, *speed), notes=(*told.notes, *found.notes))


def _diff(pair: Pair, few: list[Sample], stream: Iterator[Sample], say: Say, divided: int) -> Diff:
    """Compare two models of which neither decides a size, but for the time that they take."""
    reference, quantized = load_model(pair.reference), load_model(pair.quantized)
    say("prepare")
    with naming(pair.reference):
        filled = PadChannels.of(quantized)
        steps = PREPARE if filled is None else (*PREPARE, filled)
        prepared, _ = prepare(reference, few[0].feed, custom_ops=pair.custom_ops, steps=steps)
        prepared = without_removed(prepared, quantized, few[0].feed, pair.custom_ops)
    floats = FloatNodes([prepared, reference], refitted_in(quantized))
    with naming(pair.quantized):
        board = switchboard(quantized, floats, pair.custom_ops)
    whole, everything = Whole(), itertools.chain(few, stream)
    say("compare")
    with (
        session_of(runnable_source(pair.reference, reference), custom_ops=pair.custom_ops) as left,
        session_of(runnable_source(pair.quantized, quantized), custom_ops=pair.custom_ops) as right,
    ):
        both = Both(left, right, pair_outputs(left, right), whole)
        if board.sites:
            with _panel(board, floats, pair.custom_ops) as panel:
                task = Task(pair.names, divided, say, _modules(board, prepared), floats.names)
                results = _switched(panel, both, few, everything, task)
        else:
            results = _by_name(prepared, quantized, both, everything, pair.custom_ops)
    worst = tuple(WorstSample(-index, -lacking) for lacking, index in sorted(whole.lowest, reverse=True))
    return Diff(
        whole.outputs.sqnr_db,
        whole.outputs.cosine,
        whole.count,
        len(few) if board.sites else 0,
        results.nearest,
        results.findings,
        results.layers,
        worst,
        (*_refitted(floats), *results.notes, *integer_operators(board.model)),
    )


@dataclass(frozen=True)
class Both:
    """Open sessions of both models, and sums over their outputs.

    Attributes:
        left: The float model.
        right: The quantized model.
        outputs: Names of each output in both.
        whole: Sums over what they give.
    """

    left: InferenceSession
    right: InferenceSession
    outputs: Sequence[tuple[str, str]]
    whole: Whole

    def update(self, feed: Feed) -> list[NDArray[Any]]:
        """Run both models on a sample, add it to the sums, and return the float model's outputs."""
        reference = self.reference(feed)
        self.whole.update(reference, run(self.right, dict(feed), [name for _, name in self.outputs]))
        return reference

    def reference(self, feed: Feed) -> list[NDArray[Any]]:
        """Return the float model's outputs on a sample."""
        return run(self.left, dict(feed), [name for name, _ in self.outputs])


@dataclass(frozen=True)
class Found:
    """Results of comparing layers.

    Attributes:
        layers: As in `Diff`; so are the others.
        findings: What costs accuracy.
        nearest: SQNR of the float network inside the quantized model, dB.
        notes: What could not be compared.
    """

    layers: tuple[LayerDiff, ...]
    findings: tuple[Finding, ...] = ()
    nearest: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Task of switching layers.

    Attributes:
        names: How the user calls the models.
        divided: Sites whose constants and grids are told apart.
        say: Called with the name of each step.
        modules: Site -> the module that it was exported from.
        nodes: Names of the float model's nodes.
    """

    names: Names
    divided: int
    say: Say
    modules: Mapping[str, str]
    nodes: Collection[str]


@contextmanager
def _panel(board: Switchboard, floats: FloatNodes, custom_ops: Sequence[str | Path]) -> Iterator[Panel]:
    """Open the switchboard with every value that is compared among its outputs."""
    outputs = tuple(str(value.name) for value in board.model.graph.outputs)
    made = {str(value.name): value for node in board.model.graph for value in node.outputs}
    board.model.graph.outputs.extend(made[name] for name in board.values if name in made and name not in outputs)
    with session_of(board.model, custom_ops=custom_ops, optimization="none") as session:
        yield Panel(board, session, outputs, restore(board, floats))


def _switched(panel: Panel, both: Both, few: Sequence[Sample], everything: Iterable[Sample], task: Task) -> Found:
    """Compare all samples, then switch one layer after the other."""
    panel, _ = settle(panel, few[0].feed, both.reference(few[0].feed))
    measured, inside = Measured(), Outputs()
    for index, sample in enumerate(everything):
        task.say(f"comparing layers: sample {index + 1}")
        inside.update(both.update(sample.feed), look(panel, sample.feed, measured))
    sites, feeds = panel.board.sites, [sample.feed for sample in few]
    measure(panel, feeds, [keys_of(site) for site in sites], measured, task.say)
    ranked = sorted(sites, key=lambda site: share_of(measured, keys_of(site)), reverse=True)
    costly = [site for site in ranked[: task.divided] if share_of(measured, keys_of(site)) >= EXPLAINED]
    parts = [keys for site in costly for keys in parts_of(site) if all(parts_of(site))]
    measure(panel, feeds, parts, measured, task.say)
    findings = tuple(_finding(site, panel, measured, task) for site in costly[:SUSPECTS])
    layers = tuple(_row(site, measured, task) for site in ranked)
    return Found(layers, findings, inside.sqnr_db, tuple(_notes(panel, inside.sqnr_db, both.whole)))


def _modules(board: Switchboard, prepared: ir.Model) -> dict[str, str]:
    """Map sites to the modules that they were exported from."""
    modules = modules_of(prepared)
    return {site.name: modules[site.name] for site in board.sites if site.name in modules}


def _finding(site: Site, panel: Panel, measured: Measured, task: Task) -> Finding:
    known = Handles(task.modules)
    called = replace(site, name=known.of(site.name), readers=tuple(map(known.of, site.readers)))
    symptom = explain(site, called, measured, panel.restored)
    share, command = share_of(measured, keys_of(site)), task.names.command(symptom.option)
    alone, restored = measured.shares(keys_of(site))
    return Finding(symptom.kind, site.name, share, alone, restored, symptom.text, symptom.option, command)


def _row(site: Site, measured: Measured, task: Task) -> LayerDiff:
    tally, (alone, restored) = measured.layers[site.name], measured.shares(keys_of(site))
    share, both = share_of(measured, keys_of(site)), [keys for keys in parts_of(site) if keys in measured.alone]
    of_weights, of_grids = [share_of(measured, keys) for keys in both] if len(both) > 1 else (None, None)
    return LayerDiff(
        site.name, site.op_type, tally.sqnr_db, tally.cosine, alone, restored, share,
        of_weights, of_grids, bool(parts_of(site)[1]), site.readers,
        task.modules.get(site.name, ""), site.name not in task.nodes,
    )  # fmt: skip


def _notes(panel: Panel, nearest: float, whole: Whole) -> Iterator[str]:
    lost = [each.parameter for each in panel.restored.values() if each.value is None]
    if lost:
        nodes = ", ".join(dict.fromkeys(each.node for each in lost[:LISTED]))
        yield f"{len(lost)} constants are not those of the float model and stay as they are: {nodes}, ..."
    if nearest < whole.outputs.sqnr_db + APART_DB:
        yield (
            f"with every layer restored the quantized model is {nearest:.1f} dB from the float model: it differs in "
            "more than rounding, which the shares do not explain"
        )


def _refitted(floats: FloatNodes) -> Iterator[str]:
    if floats.refitted:
        yield (
            f"{len(floats.refitted)} layers were fitted to fewer channels: what that cost is part of the error, "
            "and of no layer's share"
        )


def _by_name(
    prepared: ir.Model, quantized: ir.Model, both: Both, everything: Iterable[Sample], custom_ops: Sequence[str | Path]
) -> Found:
    """Compare values of one name and shape in both models, where nothing can be switched."""
    names = shared_values(prepared, quantized)
    tallies = {name: Tally() for name in names}
    parts = exposed(prepared, list(names)), exposed_codes(quantized, names)
    with ExitStack() as stack:
        sessions = [stack.enter_context(session_of(part, custom_ops=custom_ops)) for part in parts if names]
        for sample in everything:
            both.update(sample.feed)
            values = [run(session, dict(sample.feed)) for session in sessions] or [[], []]
            for tally, a, b in zip(tallies.values(), *values, strict=True):
                if a.shape == b.shape:
                    tally.update(a, b)
    kinds = {name_of(node): node.op_type for node in prepared.graph}
    rows = [LayerDiff(name, kinds[name], each.sqnr_db, each.cosine) for name, each in tallies.items() if each.signal]
    return Found(tuple(sorted(rows, key=lambda row: row.sqnr_db)), notes=(WITHOUT_PAIRS,))


def _kernels(pair: Pair, quantized: ir.Model) -> Kernels:
    """Count the kernels that onnxruntime runs of the quantized model."""
    source = runnable_source(pair.quantized, quantized)
    if isinstance(source, str | Path):
        return count_kernels(Path(source), pair.custom_ops)
    with scratch_folder() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(source)
        return count_kernels(path, pair.custom_ops)
