"""Choice of layers that run on integers for the fastest model: measured node by node, then end to end.

The float and the all-integer model are profiled. Between a float node and an integer one lies a conversion, so the
cheapest division of the graph is a minimum cut. What a conversion costs in company is not known exactly; divisions for
several prices are timed in turns with both whole models, and the fastest of all is taken: never slower than either.
"""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ptq.allocation.divide import NodeTimes, Price, converted_values, divide, values_and_readers
from ptq.analysis.bench import Setting, take_turns
from ptq.analysis.nodes import NodeTime, node_times
from ptq.analysis.report import TimedPlan
from ptq.calibration.collect import collect
from ptq.calibration.replay import SampleReplay
from ptq.calibration.sample import repeated
from ptq.calibration.split import split_samples
from ptq.calibration.store import ArrayStore
from ptq.core.arrays import Feed
from ptq.core.errors import InputError, RecipeError
from ptq.core.progress import Progress, silent
from ptq.core.statistics import Histogram
from ptq.job import Context, Job
from ptq.models.probe import require_survivable
from ptq.models.sessions import run, session_of
from ptq.passes import Placement, SlopesAsConvs, prepare
from ptq.passes.infer_shapes import count_values, observe
from ptq.passes.linear import name_of
from ptq.recipe import LayerRule, Recipe
from ptq.solving.choices import choices_of
from ptq.solving.grids import per_value
from ptq.solving.plan import Problem, make_plan
from ptq.streaming.solve import needs_streaming
from ptq.transforms import Rewritten
from ptq.weights import Rtn

CALIBRATED_ON = 4
"""Samples that ranges are taken from while only time is of interest."""

SECONDS = 1.0
"""Roughly how long a model is profiled, and how long each is timed in turns."""

PRICES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Prices of conversions that divisions are tried for, over the measured one."""

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput", "Sum"})
FIXED = 3.0
"""Microseconds that a conversion takes however little it converts."""

SAME = 0.01
"""Share of the time below which two plans are equally fast: then the one with more integers is taken."""

MARK = "ptq"
BLOCKED = "_nchwc"
"""Suffix of a value's name in that of the node that makes it, where onnxruntime chose blocks of channels."""

ROUNDS = 2
FASTER = "faster in float"


@dataclass(frozen=True)
class Choice:
    """Choice that measuring led to.

    Attributes:
        recipe: Recipe that makes the fastest model without measuring.
        plans: Divisions that were timed, float first.
    """

    recipe: Recipe
    plans: tuple[TimedPlan, ...]


def fastest(job: Job, progress: Progress = silent, rounds: int = ROUNDS) -> Choice:
    """Find out which layers should be integers on this machine.

    Args:
        job: Model, data and recipe; a few samples are read from the beginning.
        progress: Called with the name of each step.
        rounds: Times that divisions are sought: what is learned of conversions in one serves the next.

    Returns:
        Recipe and timings. Layers that are faster in float are excluded by name; if nothing is faster than float,
        the recipe leaves all activations in float.

    Raises:
        RecipeError: The recipe has no static activations, or the model takes no batch of that size.
    """
    if not job.recipe.has_grids:
        raise RecipeError("optimize: latency chooses between float and static integers; leave out weight-only, dynamic")
    progress("measure")
    trial = LatencyTrial.of(job)
    whole = trial.mixed(frozenset())
    times = NodeTimes(trial.times(trial.float_form()), trial.times(whole.form))
    mixes, latest, tried = {whole.key: whole}, whole, {frozenset[str]()}
    for _ in range(rounds):  # the conversions of a mixed plan tell more of their price than those of the whole one
        price = trial.price(latest)
        for factor in PRICES:
            floats = divide(trial.model, whole.placement, times, trial.sizes, price.times(factor))
            if floats not in tried and len(floats & whole.layers) < len(whole.layers):
                latest = trial.mixed(floats)
                mixes.setdefault(latest.key, latest)
            tried.add(floats)
    return trial.choose(list(mixes.values()))


@dataclass(frozen=True)
class _Mixed:
    """Model with some nodes left in float."""

    placement: Placement
    form: bytes

    @property
    def layers(self) -> frozenset[str]:
        return frozenset(layer.name for layer in self.placement.layers)

    @property
    def key(self) -> frozenset[str]:
        return self.placement.integer_nodes


@dataclass(frozen=True)
class LatencyTrial:
    """Model that is tried out; what its layers compute does not matter here, only how long they take."""

    context: Context
    state: Rewritten
    feed: Feed
    histograms: Mapping[str, Histogram]
    sizes: Mapping[str, int]

    @staticmethod
    def of(job: Job) -> LatencyTrial:
        """Prepare a model, and name its nodes so that they are known again in a profile."""
        context, split = Context.of(job), split_samples(job.data, hold_out=False)
        if needs_streaming(context.model):
            raise RecipeError("optimize: latency is for models that fit into memory")
        require_survivable(context.form, split.first.feed, job.custom_ops)
        model, _ = prepare(context.model, split.first.feed, custom_ops=job.custom_ops)
        SlopesAsConvs()(model)  # as it will be
        own = replace(job.recipe.weights, method=Rtn(), split="never", extra_macs=0.0, bias_correction=False)
        choices = choices_of(replace(job.recipe, weights=own, layers=()), context.target, model)
        state = Rewritten(model, choices)
        with context.calibration() as calibration:
            for transform in context.mode.squeezes:
                state = transform.rewrite(state, calibration)
        model = state.model
        placement = context.mode.place(state)
        wanted = context.mode.wanted(state, placement)
        seen = collect(model, split.ahead(CALIBRATED_ON), wanted, custom_ops=job.custom_ops).statistics
        for index, node in enumerate(model.graph):
            node.name = f"{MARK}{index}"
        names = [str(value.name) for value, _ in values_and_readers(model) if value.name]
        feed = repeated(split.first.feed, job.recipe.latency_batch)
        try:
            arrays = observe(model, names, feed, job.custom_ops)
        except InputError as error:
            batch = job.recipe.latency_batch
            raise RecipeError(f"latency_batch is {batch}, which the model does not take: {error}") from error
        sizes = {name: count_values(array) for name, array in zip(names, arrays, strict=True)}
        return LatencyTrial(context, state, feed, per_value(placement, seen.histograms), sizes)

    @property
    def model(self) -> ir.Model:
        """Prepared model in float."""
        return self.state.model

    def placed(self, floats: frozenset[str]) -> Placement:
        """Place integers with some nodes in float."""
        return self.context.mode.place(self.state, dict.fromkeys(floats, FASTER))

    def mixed(self, floats: frozenset[str]) -> _Mixed:
        """Build the model with some nodes in float."""
        placement = self.placed(floats)
        with ArrayStore(0) as store:
            samples = SampleReplay(store, self.context.job.custom_ops)
            problem = Problem(self.model, placement, self.histograms, {}, self.state.choices, samples, self.feed)
            plan, _ = make_plan(problem)
        proto = ir.to_proto(self.context.mode.lower(self.model, placement, plan))
        return _Mixed(placement, proto.SerializeToString())

    def float_form(self) -> bytes:
        """Serialize the prepared model in float."""
        return bytes(ir.to_proto(self.model).SerializeToString())

    def times(self, form: bytes) -> dict[str, float]:
        """Measure the microseconds of each of our nodes; of several that became one, the one whose name it has."""
        names = {f"{MARK}{index}": name_of(node) for index, node in enumerate(self.model.graph)}
        names |= {f"{name}{BLOCKED}": name for name in names.values()}
        found: dict[str, float] = {}
        for node in self._profile(form):
            match = re.match(rf"{MARK}\d+|.*{BLOCKED}", node.name)
            if match is not None and match.group() in names:
                name = names[match.group()]
                found[name] = found.get(name, 0.0) + node.microseconds
        return found

    def price(self, mixed: _Mixed) -> Price:
        """Estimate what conversions cost in a model."""
        nodes = [each for each in self._profile(mixed.form) if not each.name.startswith(MARK)]
        spent = sum(each.microseconds for each in nodes if each.op_type in CONVERSIONS)
        converted = [self.sizes[name] for name in converted_values(self.model, mixed.placement)]
        rest = max(spent - FIXED * len(converted), 0.1 * spent)
        return Price(FIXED, rest / max(sum(converted), 1))

    def choose(self, mixes: list[_Mixed]) -> Choice:
        """Time all in turns, and take the fastest; of those as fast the one with most integers, rather than float."""
        forms = [self.context.form, *(mixed.form for mixed in mixes)]
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(session_of(form, custom_ops=self.context.libraries, fixed_draws=False))
                for form in forms
            ]
            calls = [functools.partial(run, session, dict(self.feed)) for session in sessions]
            _, processor = take_turns(calls, SECONDS * len(calls))
        floats, *others = (float(each) * 1e3 for each in np.median(processor, axis=1))
        counts = [len(mixes[0].layers - mixed.layers) for mixed in mixes]
        plans = [TimedPlan("float", len(mixes[0].layers), floats)]
        plans += [TimedPlan(_called(*each), *each) for each in zip(counts, others, strict=True)]
        recipe, best = replace(self.context.job.recipe, optimize="integers"), min(others)
        if floats < best * (1 - SAME):
            return Choice(replace(recipe, weight_only=True), tuple(plans))
        index = min((i for i, each in enumerate(others) if each <= best * (1 + SAME)), key=lambda i: counts[i])
        layers, more = self._floats(mixes[0], mixes[index])
        rules = tuple(LayerRule(name, float_kernel=True) for name in layers)
        return Choice(replace(recipe, layers=recipe.layers + rules, exclude=(*recipe.exclude, *more)), tuple(plans))

    def _floats(self, whole: _Mixed, chosen: _Mixed) -> tuple[list[str], list[str]]:
        """Return as little as has to be named: layers on float kernels, and what would still be integers then."""
        layers = whole.layers - chosen.layers
        more = self.placed(layers).integer_nodes - chosen.key
        names = [name_of(node) for node in self.model.graph if name_of(node) in layers | more]
        floats = [glob.escape(name) for name in names if name in layers]
        return floats, [glob.escape(name) for name in names if name not in layers]

    def _profile(self, form: bytes) -> tuple[NodeTime, ...]:
        return node_times(form, self.feed, Setting(self.context.libraries, budget_seconds=SECONDS))


def _called(num_float: int, _milliseconds: float) -> str:
    return "all integers" if not num_float else f"{num_float} layers in float"
