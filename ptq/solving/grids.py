"""Grids of activations, one per group, and what is lost on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.observers import Auto
from ptq.calibration.statistics import HistogramOf, MeanOf, Statistic
from ptq.core.affine import QuantParams, choose_qparams
from ptq.core.decibels import decibels
from ptq.core.distortion import expected_error
from ptq.core.distribution import Distribution, distribution_of_values
from ptq.core.layer import LinearLayer
from ptq.core.plan import QuantPlan
from ptq.core.spec import QuantSpec
from ptq.core.statistics import Histogram
from ptq.passes.placement import Placement
from ptq.solving.choices import Choices
from ptq.solving.curved import narrowed
from ptq.solving.ranges import range_of

UNEVEN = 16.0
"""Ratio of ranges beyond which a part of a Concat keeps less than four of its eight bits."""

RIGHT_OPERAND = QuantSpec(signed=True, symmetric=True)
"""Grid of the right side of a product of two activations: its kernel is twice as fast on signed, centered codes."""


@dataclass(frozen=True)
class Grids:
    """Grids of the activations, with what is lost on them.

    Attributes:
        of_value: Value name -> grid.
        sqnr_db: Value name -> signal over rounding noise of its group on that grid, dB.
        group: Value name -> first value of its group.
    """

    of_value: Mapping[str, QuantParams]
    sqnr_db: Mapping[str, float]
    group: Mapping[str, str]


def choose_grids(placement: Placement, histograms: Mapping[str, Histogram], settings: Choices) -> Grids:
    """Choose one grid per group of values.

    Args:
        placement: Placement, whose groups of values have grids.
        histograms: Value name of `placement.sources` -> its distribution.
        settings: Observer and grid of activations.
    """
    groups = _seen_on_grids(placement, histograms)
    specs = [RIGHT_OPERAND if i in placement.right_operands else settings.activation for i in range(len(groups))]
    observers = [settings.observer_of(i in placement.only_products) for i in range(len(groups))]
    ranges = [range_of(observer, h, spec) for observer, h, spec in zip(observers, groups, specs, strict=True)]
    if isinstance(settings.observer, Auto):  # the others say themselves how far a range reaches
        for i, curve in placement.curves.items():
            ranges[i] = narrowed(groups[i], curve, ranges[i], specs[i])
    grids = [choose_qparams(limits, spec) for limits, spec in zip(ranges, specs, strict=True)]
    for i, ramp in placement.ramps.items():
        grids[i] = ramp.fit(ranges[i], specs[i], cut=i in placement.cut)
    for i, source in placement.gates.items():
        grids[i] = placement.ramps[source].gate(grids[source])
    for i, members in enumerate(placement.groups):
        grids[i] = next((placement.given[name] for name in members if name in placement.given), grids[i])
    noise = [_activation_sqnr_db(h, grid) for h, grid in zip(_told_apart(placement, groups, grids), grids, strict=True)]
    index = {name: i for i, members in enumerate(placement.groups) for name in members}
    return Grids(
        {name: grids[i] for name, i in index.items()},
        {name: noise[i] for name, i in index.items()},
        {name: placement.groups[i][0] for name, i in index.items()},
    )


def grid_distributions(
    placement: Placement, histograms: Mapping[str, Histogram], plan: QuantPlan
) -> dict[str, Distribution]:
    """Summarize the values seen on each grid of activations, by the first value of its group.

    Args:
        placement: Placement, whose groups of values have grids.
        histograms: Value name of `placement.sources` -> its distribution.
        plan: Holds their grids.
    """
    spreads, grids = {}, [plan.activations[members[0]] for members in placement.groups]
    groups = _told_apart(placement, _seen_on_grids(placement, histograms), grids)
    for members, histogram, grid in zip(placement.groups, groups, grids, strict=True):
        spreads[members[0]] = distribution_of_values(histogram, grid, _activation_sqnr_db(histogram, grid))
    return spreads


def wanted_of(
    placement: Placement,
    aside: Mapping[str, NDArray[np.int64]] = MappingProxyType({}),
    floats: Sequence[LinearLayer] = (),
) -> dict[str, tuple[Statistic, ...]]:
    """Return the statistics that a plan needs: distributions of values with a grid, channel means of layers' inputs.

    Args:
        placement: What becomes integers.
        aside: Value -> channels that its grid need not reach.
        floats: Layers on float kernels whose weights lie on codes.
    """
    histograms = {name: HistogramOf(tuple(map(int, aside.get(name, ())))) for name in placement.sources}
    means = {layer.source: MeanOf(channel_axis(layer)) for layer in (*placement.layers, *floats)}
    names = dict.fromkeys([*histograms, *means])
    return {name: tuple(kind[name] for kind in (histograms, means) if name in kind) for name in names}


def channel_axis(layer: LinearLayer) -> int:
    """Return the axis of the channels in the input of a layer, whose means bias correction needs."""
    return 1 if layer.unfold.kernel else -2 if layer.unfold.columns else -1


def low_sqnr_inputs(
    placement: Placement, histograms: Mapping[str, Histogram], settings: Choices, min_input_sqnr_db: float
) -> dict[str, str]:
    """Find the layers that one static grid for their whole input would ruin.

    Args:
        placement: Placement of the layers.
        histograms: Value name of `placement.sources` -> its distribution.
        settings: Observer and grid of activations.
        min_input_sqnr_db: Least signal over rounding noise of an input, dB.

    Returns:
        Layer name -> reason to leave it in float.
    """
    groups = _merge_groups(placement, histograms)
    group_of = {name: i for i, members in enumerate(placement.groups) for name in members}
    fragile = {}
    for layer in placement.layers:
        if (
            layer.op_type == "Conv"
        ):  # its output has to be codes for its neighbors; a float one costs more than it saves
            continue
        index = group_of[layer.source]
        histogram, observer = groups[index], settings.observer_of(index in placement.only_products)
        grid = choose_qparams(observer.choose_range(histogram, settings.activation), settings.activation)
        kept = _activation_sqnr_db(histogram, grid)
        if kept < min_input_sqnr_db:
            bits = settings.activation.num_bits
            fragile[layer.name] = f"its input keeps only {kept:.1f} dB on {bits} bits: a few values dwarf the rest"
    return fragile


def uneven_concats(model: ir.Model, placement: Placement, histograms: Mapping[str, Histogram]) -> tuple[str, ...]:
    """Find the Concats whose parts differ so much in range that the common grid leaves the smallest few codes.

    Args:
        model: Prepared model.
        placement: Placement, which says which Concats run on integers.
        histograms: Value name -> its distribution, for every value in a group.

    Returns:
        A note for each, with what to try.
    """
    notes = []
    for node in model.graph:
        name = str(node.outputs[0].name)
        if node.op_type != "Concat" or name not in placement.integer_nodes:
            continue
        parts = [histograms[str(value.name)] for value in node.inputs if value is not None]
        reaches = [max(-part.rmin, part.rmax) for part in parts]
        if max(reaches) > UNEVEN * min(reaches):
            ratio = max(reaches) / max(min(reaches), 1e-30)
            notes.append(f"Concat {name!r} joins ranges that differ {ratio:.0f}-fold on one grid; try --exclude {name}")
    return tuple(notes)


def per_value(placement: Placement, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Give every value of every group its histogram, so that leaving a layer out needs no second look at the data."""
    groups = _merge_groups(placement, histograms)
    result = {name: groups[i] for i, members in enumerate(placement.groups) for name in members}
    return result | dict(histograms)


def _seen_on_grids(placement: Placement, histograms: Mapping[str, Histogram]) -> list[Histogram]:
    """Merge the values of each group; those below the foot of a hard sigmoid are as good as that."""
    groups = _merge_groups(placement, histograms)
    for index in placement.cut:
        groups[index] = groups[index].raised(placement.ramps[index].foot)
    return groups


def _told_apart(placement: Placement, groups: Sequence[Histogram], grids: Sequence[QuantParams]) -> list[Histogram]:
    """Raise the values that a function behind them does not tell apart to the lowest code."""
    seen = list(groups)
    for index in placement.curves:
        low = (grids[index].spec.qmin - int(grids[index].zero_point)) * float(grids[index].scale)
        seen[index] = seen[index].raised(low) if low < 0 else seen[index]
    return seen


def _merge_groups(placement: Placement, histograms: Mapping[str, Histogram]) -> list[Histogram]:
    merged: dict[int, Histogram] = {}
    for name, index in placement.sources.items():
        merged[index] = merged[index].merge(histograms[name]) if index in merged else histograms[name]
    return [merged[index] for index in range(len(placement.groups))]


def _activation_sqnr_db(histogram: Histogram, grid: QuantParams) -> float:
    density = histogram.density
    middle = (density.lower + density.upper) / 2
    signal = float(np.square(middle) @ density.counts) / max(histogram.total, 1)
    return decibels(signal, float(expected_error(histogram, grid)))
