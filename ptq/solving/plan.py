"""From statistics to a plan: one weight problem per linear layer, solved in the order in which data flows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ptq.allocation.greedy import Demand, allocate
from ptq.calibration.influence import LayerErrors
from ptq.calibration.record import CalibrationStatistics
from ptq.calibration.sequential import Feed, SampleReplay, SequentialWalk
from ptq.core.affine import QuantParams
from ptq.core.channel_mean import ChannelMean
from ptq.core.damping import LayerMoments
from ptq.core.decibels import NO_ERROR_DB, decibels
from ptq.core.distribution import distribution_of_weight
from ptq.core.encoding import WeightEncoding
from ptq.core.family import tag_of
from ptq.core.layer import LinearLayer
from ptq.core.layer_row import LayerRow
from ptq.core.plan import BiasEncoding, QuantPlan
from ptq.core.problem import LayerProblem, Needs
from ptq.core.progress import Progress, counted, silent
from ptq.core.solved_layer import SolvedLayer
from ptq.core.spec import PerAxis
from ptq.core.widths import Widths
from ptq.delivery.checkpoints import Checkpoints
from ptq.passes.graph import initializer_of
from ptq.passes.infer_shapes import output_sizes
from ptq.passes.placement import Placement
from ptq.passes.stored import tensor_of, value_in
from ptq.solving.choices import Choices, LayerChoice
from ptq.solving.grids import Grids, choose_grids
from ptq.solving.layer import InputMeans, InputStatistics, LayerArrays, solve_layer
from ptq.solving.splits import choose_split
from ptq.weights import Rtn

WIDE = 2048
"""Inputs of a layer from which on several threads in one matrix product are worth their waiting for each other."""


BYTE = 8
MORE_BITS = 2
"""What the words of an embedding table have more than those of weights, up to a byte: nothing corrects its errors."""

WORTH_DB = 3.0
"""What a split has to gain at the layer's output to be made without being asked for."""


@dataclass(frozen=True)
class Problem:
    """What there is to solve.

    Attributes:
        model: Prepared float model; only its weights are read.
        placement: Which nodes and values become integers.
        statistics: Histograms of `placement.sources` and, for bias correction, means of the layers' inputs.
        settings: Observer, method and grids.
        samples: The calibration set again, for methods that look at a layer's input.
        feed: One sample.
        notes: Layers that an interrupted run has solved.
        progress: Told how many layers are solved.
    """

    model: ir.Model
    placement: Placement
    statistics: CalibrationStatistics
    settings: Choices
    samples: SampleReplay
    feed: Feed
    notes: Checkpoints = field(default_factory=Checkpoints)
    progress: Progress = silent


def make_plan(problem: Problem) -> tuple[QuantPlan, tuple[LayerRow, ...]]:
    """Decide every grid and every code.

    Args:
        problem: Model, statistics and settings.

    Returns:
        The plan, and a row per layer for the report.
    """
    settings = problem.settings
    grids = choose_grids(problem.placement, problem.statistics.histograms, settings)
    layers = problem.placement.layers
    jobs = {layer.name: LayerSolver(LayerArrays.of(problem.model, layer), layer, settings, grids) for layer in layers}
    tables = {
        table.name: _rows(table.name, initializer_of(problem.model, table.name), settings)
        for table in problem.placement.tables
    }
    stored = {
        weight.name: _rows(
            weight.name,
            weight.to_matrix(_numbers(problem.model, weight.name)),
            settings,
            saturates=settings.saturates and settings.dynamic and weight.is_recurrent,
        )
        for weight in problem.placement.stored
    }
    if settings.extra_macs > 0:
        demands: dict[str, Demand] = {}
        _solve(problem, tables, grids, jobs, demands)
        rows = allocate(demands, settings.extra_macs)
        jobs = {name: replace(job, rows=rows.get(name)) for name, job in jobs.items()}
    solved = _solve(problem, tables, grids, jobs)
    sizes = output_sizes(problem.model, list(jobs), problem.feed, problem.samples.custom_ops)
    return replace(_plan(grids, solved), tables=tables, stored=stored), tuple(
        job.row(solved[name], sizes[name]) for name, job in jobs.items()
    )


def _numbers(model: ir.Model, name: str) -> NDArray[np.float32]:
    tensor = tensor_of(value_in(model, name))
    if tensor is None:
        raise RuntimeError(f"weight {name} lost its values")
    return np.asarray(tensor.numpy(), np.float32)


def _rows(name: str, rows: NDArray[np.float32], settings: Choices, *, saturates: bool = False) -> WeightEncoding:
    """Rows of a table or of a weight that only shrinks in the file, one scale each.

    Long words cost bytes and no time there, and nothing corrects their errors.
    """
    bits = min(settings.weights.spec.num_bits + MORE_BITS, BYTE)
    spec = replace(settings.weights.spec, num_bits=bits, narrow_range=bits == BYTE, granularity=PerAxis(0))
    method = Rtn("mse" if bits < BYTE else "absmax")
    order = np.arange(rows.shape[1]) if saturates else None
    return method.quantize(LayerProblem(name, rows, spec, order=order))


def _solve(
    problem: Problem,
    tables: Mapping[str, WeightEncoding],
    grids: Grids,
    jobs: Mapping[str, LayerSolver],
    demands: dict[str, Demand] | None = None,
) -> dict[str, SolvedLayer]:
    """Solve all layers; with `demands`, also find out what longer words would gain, for another round."""
    means = problem.statistics.means if problem.settings.bias_correction else {}
    tasks = ((job, means.get(job.layer.source)) for job in jobs.values())
    started = problem.samples.engine.map(_start, None, tasks)
    solved = dict(zip(jobs, counted(started, len(jobs), problem.progress), strict=True))
    walked = [job.layer for job in jobs.values() if Needs.MOMENTS in job.choice.method.needs]
    if not walked:
        return solved
    start, survey = replace(_plan(grids, solved), tables=tables), demands is not None
    walk = SequentialWalk(problem.model, problem.placement, start, walked, problem.samples, survey=survey)
    for layer, seen in counted(walk.layers(), len(walked), problem.progress):
        job = jobs[layer.name]
        with threadpool_limits(1 if layer.fan_in < WIDE else None, "blas"):
            found = (
                job.solve(seen)
                if survey
                else problem.notes.restore_or_solve(layer.name, functools.partial(job.solve, seen))
            )
        if demands is not None and found.output is not None:
            demands[layer.name] = job.demand(found, walk)
        solved[layer.name] = found.settled()
        walk.install(layer, found.encoding, found.bias)
    return solved


@dataclass(frozen=True)
class LayerSolver:
    """One layer to solve."""

    arrays: LayerArrays
    layer: LinearLayer
    settings: Choices
    grids: Grids
    rows: NDArray[np.int8] | None = None

    @property
    def choice(self) -> LayerChoice:
        """How its weight is quantized."""
        return self.settings.choice(self.layer)

    def start(self, seen: ChannelMean | None) -> SolvedLayer:
        """Solve from the weight and the means of the input; for a method that needs more, what its walk starts from."""
        waits = Needs.MOMENTS in self.choice.method.needs
        choice = replace(self.choice, method=Rtn(), split="never") if waits else self.choice
        means = None if seen is None else InputMeans.of_channels(self.layer, seen)
        return self._best(choice, InputStatistics(None, means))

    def solve(self, moments: LayerMoments) -> SolvedLayer:
        """Solve with the moments of the input."""
        product = self.layer.op_type == "MatMul"
        # A product without a grid is asked to undo earlier errors by its weights; its bias would undo them once more.
        corrects = self.settings.bias_correction and not (product and self._grid is None)
        means = InputMeans.of_moments(moments, own=product) if corrects else None
        return self._best(self.choice, InputStatistics(moments, means))

    def _best(self, choice: LayerChoice, seen: InputStatistics) -> SolvedLayer:
        """With words of one length, or with the longer ones that were asked for where they err less."""
        rows = self.rows if self.rows is not None and (self.rows > choice.spec.num_bits).any() else None
        own = None if rows is None else Widths.in_rows(rows, self.layer.fan_in)
        single = solve_layer(self.arrays, choice, self._grid, seen, own, saturates=self.settings.saturates)
        split = choose_split(self.layer, self.arrays.weight, choice)
        if isinstance(split, str):
            return replace(single, note=split)
        merged = split if own is None else split.merge(own)
        both = solve_layer(self.arrays, choice, self._grid, seen, merged, saturates=self.settings.saturates)
        gain = decibels(single.excess, both.excess)
        if gain <= 0 or (choice.split == "auto" and gain < WORTH_DB):
            return replace(single, note=f"split rejected ({gain:+.1f} dB)")
        return replace(both, note=f"split ({gain:+.1f} dB)")

    def demand(self, found: SolvedLayer, walk: SequentialWalk) -> Demand:
        """What a longer word in a row would gain."""
        output, encoding = found.output, found.encoding
        if output is None:
            raise RuntimeError(f"{self.layer.name} was solved without its output")
        errors = LayerErrors(
            output.rounding, output.row_error, self.settings.bias_correction and self.arrays.takes_bias
        )
        influence = walk.influence(self.layer, errors)
        return Demand(influence.cost, influence.positions * self.layer.fan_in, encoding.num_bits)

    @property
    def _grid(self) -> QuantParams | None:
        return self.grids.of_value.get(self.layer.source)

    def row(self, solved: SolvedLayer, output_size: int) -> LayerRow:
        """What to report."""
        macs = output_size * self.layer.fan_in
        error, signal = solved.weight_error
        encoding, output = solved.encoding, solved.output
        extra = 0 if encoding.widths is None else encoding.widths.extra_words(encoding.num_bits)
        weight_sqnr_db = decibels(signal, error)
        return LayerRow(
            self.layer.name,
            self.layer.op_type,
            encoding.num_bits,
            self.arrays.weight.size,
            _described(solved),
            0 if self.layer.name in self.settings.coarse else macs,
            macs if self.layer.name in self.settings.coarse else macs * extra // self.arrays.weight.size,
            macs if self.layer.name in self.settings.coarse else 0,
            weight_sqnr_db,
            self.grids.sqnr_db.get(self.layer.source, NO_ERROR_DB),
            solved.bias_guarded,
            tag_of(type(self.choice.method)),
            None if output is None else decibels(output.signal, output.error),
            None if output is None else decibels(output.signal, output.bound),
            encoding.num_levels(),
            encoding.zeros() / self.arrays.weight.size,
            self._accumulator(solved),
            self.grids.group.get(self.layer.source, ""),
            distribution_of_weight(self.arrays.weight, encoding, weight_sqnr_db),
        )

    def _accumulator(self, solved: SolvedLayer) -> int:
        grid = self._grid
        if grid is None:
            return 0
        sums = solved.encoding.reach()
        low, high = grid.spec.limits
        reach = max(int(grid.zero_point) - low, high - int(grid.zero_point))
        bias = np.abs(solved.bias.codes.astype(np.int64)) if isinstance(solved.bias, BiasEncoding) else 0
        return int((sums * reach + bias).max(initial=0))


def _start(_common: None, task: tuple[LayerSolver, ChannelMean | None]) -> SolvedLayer:
    """On some machine."""
    job, seen = task
    return job.start(seen)


def _described(solved: SolvedLayer) -> str:
    """Where the longer words are, counted in points as the paper does."""
    encoding = solved.encoding
    rows = np.ones(1) if encoding.widths is None else -(-encoding.widths.rows // np.int8(encoding.num_bits))
    several = f"up to {rows.max()} points in {(rows > 1).sum()} of {len(rows)} features" if rows.max() > 1 else ""
    return ", ".join(part for part in (several, solved.note) if part)


def _plan(grids: Grids, solved: Mapping[str, SolvedLayer]) -> QuantPlan:
    weights = {name: each.encoding for name, each in solved.items()}
    biases = {name: each.bias for name, each in solved.items() if each.bias is not None}
    return QuantPlan(grids.of_value, weights, biases)
