"""Plan from statistics: one weight problem per linear layer, solved in the order in which data flows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from threadpoolctl import threadpool_limits

from ptq.allocation import BitPlan, Greedy
from ptq.allocation.budget import Macs
from ptq.allocation.points import ALL_POINTS, point_bits
from ptq.calibration.network import RunnableNetwork
from ptq.calibration.replay import SampleReplay
from ptq.calibration.sequential import SequentialWalk
from ptq.core.arrays import Feed
from ptq.core.channel_mean import ChannelMean
from ptq.core.encoding import WeightEncoding
from ptq.core.errors import RecipeError
from ptq.core.family import tag_of
from ptq.core.layer import LinearLayer
from ptq.core.layer_row import LayerRow
from ptq.core.plan import QuantPlan
from ptq.core.problem import LayerProblem, Needs
from ptq.core.progress import Progress, counted, noted, silent
from ptq.core.solved_layer import SOLVED_PARTS, SolvedLayer
from ptq.core.statistics import Histogram
from ptq.files.checkpoints import Checkpoints
from ptq.passes.float_layers import float_layers, takes_float_bias
from ptq.passes.infer_shapes import output_sizes
from ptq.passes.placement import NOWHERE, Placement
from ptq.passes.sites import WeightSite, matrix_of
from ptq.sensitivity import FeatureInfluence
from ptq.sensitivity.float_network import FloatNetwork, PlacedLayer
from ptq.solving.choices import Choices
from ptq.solving.cost import seconds_to_solve
from ptq.solving.gain import with_layers_behind
from ptq.solving.grids import Grids, choose_grids
from ptq.solving.layer import LayerArrays
from ptq.solving.layer_solver import LayerSolver, start_layer
from ptq.solving.tied import share_codes, with_tied

ASKED_ON = 8
"""Samples that a method which sees the whole network is told errors on."""

LONG = 120.0
"""Seconds of solving from which on a line says so, with the flag that ends it."""

WIDE = 2048
"""Inputs of a layer from which on several threads in one matrix product are worth their waiting for each other."""


@dataclass(frozen=True)
class Problem:
    """Problem of finding every grid and every code of a model.

    Attributes:
        model: Prepared float model; only its weights are read.
        placement: Nodes and values that become integers.
        histograms: Value name of `placement.sources` -> its distribution.
        means: Value name -> means of its channels, of the layers' inputs, for bias correction.
        settings: Observer, method and grids.
        samples: The calibration set again, for methods that look at a layer's input.
        feed: One sample.
        checkpoints: Layers that an interrupted run has solved.
        progress: Called with how many layers are solved.
    """

    model: ir.Model
    placement: Placement
    histograms: Mapping[str, Histogram]
    means: Mapping[str, ChannelMean]
    settings: Choices
    samples: SampleReplay
    feed: Feed
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    progress: Progress = silent


def make_plan(problem: Problem) -> tuple[QuantPlan, tuple[LayerRow, ...]]:
    """Decide every grid and every code.

    Args:
        problem: Model, statistics and settings.

    Returns:
        The plan, and a row per layer for the report.

    Raises:
        RecipeError: A method gave all words one length where the bit plan asks for several.
    """
    settings, placement = with_tied(problem.settings, problem.placement), problem.placement
    problem = replace(problem, settings=settings)
    grids, inner = choose_grids(placement, problem.histograms, settings), with_layers_behind(problem.model.graph)
    jobs = {
        layer.name: LayerSolver(
            LayerArrays.of(problem.model, layer, inner), layer, settings, grids, settings.rows.get(layer.name)
        )
        for layer in placement.layers
    }
    others: tuple[WeightSite, ...] = (*placement.tables, *placement.stored)
    rows_alone = {site.name: _rounded(problem, site) for site in others}
    in_float = _solved_in_float(problem)
    rows_alone |= {layer.weight: each.encoding for layer, each in in_float.items()}
    # In the walk recurrent layers compute in float, as they do in most models: what is installed there are tables.
    tables = {table.name: rows_alone[table.name] for table in placement.tables}
    if settings.extra_macs > 0:
        longer = _longer_words(problem, tables, grids, jobs).layers
        jobs |= {name: jobs[name].with_bits(bits) for name, bits in longer.items()}
    solved = _solve(problem, tables, grids, jobs)
    _require_lengths(settings, solved)
    means = problem.means if settings.bias_correction else {}
    solved, rows_alone = share_codes(placement, jobs, solved, rows_alone, means)
    sizes = output_sizes(problem.model, list(jobs), problem.feed, problem.samples.custom_ops)
    rows_of_report = tuple(job.row(solved[name], sizes[name]) for name, job in jobs.items())
    plan = _plan(grids, solved, rows_alone)
    beside = {layer.name: each.bias for layer, each in in_float.items() if takes_float_bias(layer) and each.bias}
    return replace(plan, biases={**plan.biases, **beside}), rows_of_report


def _require_lengths(settings: Choices, solved: Mapping[str, SolvedLayer]) -> None:
    """Refuse a bit plan by output feature where a method knows words of one length only."""
    for name, rows in settings.rows.items():
        if name in solved and len(set(rows.tolist())) > 1 and solved[name].encoding.widths is None:
            method = tag_of(type(settings.overrides[name].method))
            raise RecipeError(
                f"bit_plan: {method} has words of one length in a layer; give {name!r:.80} one, or another method"
            )


def _rounded(problem: Problem, site: WeightSite) -> WeightEncoding:
    """Round a weight whose input nobody looks at."""
    choice, weight = problem.settings.choice(site), matrix_of(problem.model, site)
    order = problem.settings.order_of(site)
    encoding: WeightEncoding = choice.quantizer.quantize(LayerProblem(site.name, weight, choice.spec, order=order))
    return encoding


def _solved_in_float(problem: Problem) -> dict[LinearLayer, SolvedLayer]:
    """Solve layers on float kernels whose weights lie on codes, as if everything else were float."""
    settings, placement = problem.settings, problem.placement
    sites = {site.name: site for site in placement.stored}
    layers = [
        layer
        for layer in float_layers(problem.model, placement)
        if settings.choice(layer).spec == settings.choice(sites[layer.weight]).spec
    ]
    if not layers:
        return {}
    alone = replace(problem, placement=replace(NOWHERE, layers=tuple(layers)), histograms={})
    grids = choose_grids(alone.placement, {}, settings)
    jobs = {
        layer.name: LayerSolver(LayerArrays.of(problem.model, layer), layer, settings, grids, None) for layer in layers
    }
    solved = _solve(alone, {}, grids, jobs, again=True)
    return {layer: solved[layer.name] for layer in layers}


def _longer_words(
    problem: Problem, tables: Mapping[str, WeightEncoding], grids: Grids, jobs: Mapping[str, LayerSolver]
) -> BitPlan:
    """Solve the layers once to see which of their output features gain most by longer words."""
    walked = _walked(jobs)
    if not walked:
        return BitPlan({})
    start = _plan(grids, _started(problem, jobs), tables)
    walk = SequentialWalk(problem.model, problem.placement, start, walked, problem.samples, survey=True)
    network = FloatNetwork(problem.model, walk.float_run, walk.sizes, problem.samples.custom_ops)
    num_bits, num_macs = dict[str, int](), dict[str, int]()

    def rounded() -> Iterator[PlacedLayer]:
        for layer, seen in counted(walk.layers(), len(walked), problem.progress):
            with _threads(layer):
                solved = jobs[layer.name].solve(seen)
            placed = jobs[layer.name].rounded(solved)
            num_bits[layer.name] = placed.num_bits
            num_macs[layer.name] = network.positions(placed) * placed.rounding.size
            yield placed
            walk.install(layer, solved.encoding, solved.bias)

    table = FeatureInfluence().measure(rounded(), ALL_POINTS, network)
    table = table.among({name: point_bits(bits) for name, bits in num_bits.items()})
    budget = problem.settings.extra_macs * sum(num_macs.values())
    return Greedy().allocate(table, Macs(num_macs, num_bits), budget)


def _solve(
    problem: Problem,
    tables: Mapping[str, WeightEncoding],
    grids: Grids,
    jobs: Mapping[str, LayerSolver],
    *,
    again: bool = False,
) -> dict[str, SolvedLayer]:
    """Solve all layers; the samples are kept if they are needed `again`."""
    solved = _started(problem, jobs)
    solved |= _together(problem, jobs, _plan(grids, solved, tables))
    walked = _walked(jobs)
    if not walked:
        return solved
    start, seconds = _plan(grids, solved, tables), seconds_to_solve(walked, len(problem.samples))
    if seconds > LONG:
        noted(problem.progress, f"solving weights takes about {seconds / 60:.0f} min; --fast rounds them instead")
    walk = SequentialWalk(problem.model, problem.placement, start, walked, problem.samples, survey=again)
    for layer, seen in counted(walk.layers(), len(walked), problem.progress):
        solve = functools.partial(jobs[layer.name].settled, seen)
        with _threads(layer):
            found = problem.checkpoints.restore_or_solve(layer.name, SolvedLayer, SOLVED_PARTS, solve)
        solved[layer.name] = found
        walk.install(layer, found.encoding, found.bias)
    return solved


def _started(problem: Problem, jobs: Mapping[str, LayerSolver]) -> dict[str, SolvedLayer]:
    """Solve every layer from its weight alone: the walk starts from that."""
    means = problem.means if problem.settings.bias_correction else {}
    tasks = ((job, means.get(job.layer.source)) for job in jobs.values())
    started = problem.samples.engine.map(start_layer, None, tasks)
    return dict(zip(jobs, counted(started, len(jobs), problem.progress), strict=True))


def _together(problem: Problem, jobs: Mapping[str, LayerSolver], start: QuantPlan) -> dict[str, SolvedLayer]:
    """Solve the layers whose method sees all of them, and the network around them; float but for their weights."""
    chosen = {name: job for name, job in jobs.items() if job.choice.together is not None}
    if not chosen:
        return {}
    problems = {name: job.problem() for name, job in chosen.items()}
    asking = [job.layer for job in chosen.values() if Needs.MOMENTS in job.choice.method.needs]
    if asking:  # what rounded layers before them give
        walk = SequentialWalk(problem.model, problem.placement, start, asking, problem.samples, survey=True)
        problems |= {layer.name: jobs[layer.name].problem(seen) for layer, seen in walk.layers()}
    feeds = list(itertools.islice(problem.samples.replay(keep=True), ASKED_ON))
    layers = [job.layer for job in jobs.values()]
    network = RunnableNetwork(problem.model, layers, feeds, problem.samples.custom_ops)
    means = problem.means if problem.settings.bias_correction else {}
    encodings = dict[str, WeightEncoding]()
    for method in dict.fromkeys(job.choice.together for job in chosen.values()):
        own = {name: each for name, each in problems.items() if chosen[name].choice.together == method}
        encodings |= {} if method is None else method.quantize_all(own, network)
    return {name: job.take(encodings[name], means.get(job.layer.source)) for name, job in chosen.items()}


def _walked(jobs: Mapping[str, LayerSolver]) -> list[LinearLayer]:
    """Solve the layers whose method looks at what the layers before them give, one after the other."""
    choices = {name: job.choice for name, job in jobs.items()}
    return [
        jobs[name].layer
        for name, choice in choices.items()
        if Needs.MOMENTS in choice.method.needs and choice.together is None
    ]


def _threads(layer: LinearLayer) -> threadpool_limits:
    """Return as many threads in a matrix product as are worth it for a layer."""
    return threadpool_limits(1 if layer.fan_in < WIDE else None, "blas")


def _plan(grids: Grids, solved: Mapping[str, SolvedLayer], others: Mapping[str, WeightEncoding]) -> QuantPlan:
    weights = {name: each.encoding for name, each in solved.items()} | dict(others)
    biases = {name: each.bias for name, each in solved.items() if each.bias is not None}
    return QuantPlan(grids.of_value, weights, biases)
