"""Depthwise convolutions whose input has a few channels far wider than the others: one grid leaves those little.

Each channel goes through by itself, so that the error of most outputs is that of the narrow ones. Scales per channel do
not pass through a hard swish; in float the layer and the one that feeds it take about as long as on codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ptq.core.channel_extremes import ChannelExtremes
from ptq.core.decibels import decibels
from ptq.core.layer import LinearLayer
from ptq.passes.linear import constant, name_of
from ptq.passes.placement import Placement
from ptq.passes.planner import is_number_on_codes
from ptq.solving.grids import Grids

ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Add", "Mul"})
"""Operators between two convolutions that are activations, or a number added or multiplied."""

GATES = frozenset({"HardSigmoid", "Sigmoid"})

Halves = Mapping[str, tuple[ChannelExtremes, ChannelExtremes]]


def is_depthwise(layer: LinearLayer) -> bool:
    """Return whether each feature of a convolution reads one channel of many."""
    return layer.op_type == "Conv" and layer.unfold.groups > 1 and layer.layout.shape[1] == 1


def signals(model: ir.Model, placement: Placement) -> dict[str, str]:
    """Return the values whose energy is what depthwise layers pass on, without numbers that are added to all of it.

    Args:
        model: Prepared model.
        placement: Placement of its layers.

    Returns:
        Layer name -> value name.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    found = dict[str, str]()
    for layer in placement.layers:
        value = values.get(layer.source) if is_depthwise(layer) else None
        while value is not None and (node := value.producer()) is not None and is_number_on_codes(node):
            value = next(each for each in node.inputs if constant(each) is None)
        if value is not None:
            found[layer.name] = str(value.name)
    return found


def too_wide(model: ir.Model, placement: Placement, grids: Grids, halves: Halves, min_sqnr_db: float) -> dict[str, str]:
    """Find depthwise layers most of whose input channels keep too little, with the layers in front of them.

    Args:
        model: Prepared model.
        placement: Placement of its layers.
        grids: Grids that they would have.
        halves: Each of `signals` -> energy of its channels.
        min_sqnr_db: Least signal over rounding noise of the channels, dB.

    Returns:
        Layer name -> reason to leave it in float.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    placed, found, signal = {layer.name for layer in placement.layers}, dict[str, str](), signals(model, placement)
    for layer in placement.layers:
        if signal.get(layer.name) not in halves:
            continue
        way = _way_up(values[layer.source])
        first = None if way is None else way[-1].producer()
        if way is None or first is None or name_of(first) not in placed:
            continue
        steps = [float(grid.scale) for value in way if (grid := grids.of_value.get(str(value.name))) is not None]
        noise = sum(step**2 / 12 for step in steps)
        kept = _kept(halves[signal[layer.name]], noise)
        if kept < min_sqnr_db:
            found[layer.name] = f"its channels keep only {kept:.1f} dB on one grid: some are far wider than others"
            found.setdefault(name_of(first), f"its channels are too uneven for one grid, for {layer.name} behind it")
    return found


def _kept(halves: tuple[ChannelExtremes, ChannelExtremes], noise: float) -> float:
    """Return signal over noise halfway between all channels together and the median of those that carry something, dB.

    Layers behind weigh channels by their energy, or make them alike first, or anything between. Infinite where no
    channel carries anything.
    """
    one, other = halves
    both = one if one is other else one.merge(other)
    power = both.square / max(both.count, 1)
    alive = power[power > 0.0]
    if not alive.size:
        return float("inf")
    return (decibels(float(np.mean(power)), noise) + decibels(float(np.median(alive)), noise)) / 2


def _way_up(value: ir.Value) -> list[ir.Value] | None:
    """Return the values from the input of a layer up to what a convolution makes, through activations.

    None where something else makes it, or where other nodes read values on the way.
    """
    way, between = [value], set[ir.Node]()
    while (node := way[-1].producer()) is not None and not node.domain and node.op_type != "Conv":
        inputs = [each for each in node.inputs if each is not None and constant(each) is None]
        makers = [each.producer() for each in inputs]
        gates = {maker for maker in makers if maker is not None and maker.op_type in GATES and not maker.domain}
        inner = [each for each in inputs if each.producer() not in gates]
        if node.op_type not in ACTIVATIONS or len(inner) != 1:
            return None
        way.append(inner[0])
        between |= {node} | gates
    if node is None or node.op_type != "Conv":
        return None
    alone = len(value.uses()) == 1 and not any(each.is_graph_output() for each in way)
    return way if alone and all(use.node in between for each in way[1:] for use in each.uses()) else None
