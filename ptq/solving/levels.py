"""Convolutions that no other integers stand beside, of samples that differ in level: sound, loud and soft.

One grid has room for the loudest sample; what is 40 dB softer keeps 40 dB less, and energies over the whole set do not
show it. Where the layers around are on codes too, a float one would cost more than it saves; one by itself is not worth
three roundings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from ptq.core.channel_mean import ChannelMean
from ptq.core.decibels import decibels
from ptq.core.layer import LinearLayer
from ptq.passes.linear import name_of
from ptq.passes.placement import Placement
from ptq.solving.grids import Grids
from ptq.target import MOVING

PASSING = MOVING | {"Relu", "Clip"}
"""Operators through which values stay on the grid on which they come."""

Levels = Mapping[str, ChannelMean]


def lone_convolutions(model: ir.Model, placement: Placement) -> dict[str, tuple[str, str]]:
    """Return the convolutions beside which nothing else computes on integers.

    Args:
        model: Prepared model.
        placement: Placement of its layers.

    Returns:
        Layer name -> the values that it reads and makes.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    values |= {str(value.name): value for value in model.graph.inputs}
    convs = [layer for layer in placement.layers if layer.op_type == "Conv"]
    return {layer.name: (layer.source, layer.name) for layer in convs if _is_alone(values, placement, layer)}


def too_uneven(
    model: ir.Model, placement: Placement, grids: Grids, levels: Levels, min_sqnr_db: float
) -> dict[str, str]:
    """Find lone convolutions whose samples keep too little on average, counted in dB.

    Args:
        model: Prepared model.
        placement: Placement of its layers.
        grids: Grids that they would have.
        levels: Value name -> mean square of a sample, dB, averaged over samples.
        min_sqnr_db: Least signal over rounding noise of a sample.

    Returns:
        Layer name -> reason to leave it in float.
    """
    found = dict[str, str]()
    for name, ends in lone_convolutions(model, placement).items():
        kept = [_kept(grids, levels, value) for value in ends]
        if min(kept) < min_sqnr_db:
            which = ("input", "result")[int(np.argmin(kept))]
            found[name] = f"a sample's {which} keeps only {min(kept):.1f} dB on average: samples differ much in level"
    return found


def _kept(grids: Grids, levels: Levels, name: str) -> float:
    """Return the signal over rounding noise of a sample, averaged in dB; infinite where nothing is known."""
    grid, level = grids.of_value.get(name), levels.get(name)
    if grid is None or level is None:
        return float("inf")
    return float(level.mean[0]) - decibels(float(grid.scale) ** 2, 12.0)


def _is_alone(values: Mapping[str, ir.Value], placement: Placement, layer: LinearLayer) -> bool:
    source = values[layer.source]
    while (maker := source.producer()) is not None and _is_on_codes(maker, placement):
        if maker.op_type not in PASSING or maker.inputs[0] is None:
            return False
        source = maker.inputs[0]
    own = [node for node in _readers(source, placement) if name_of(node) != layer.name]
    return not own and not any(True for _ in _readers(values[layer.name], placement))


def _readers(value: ir.Value, placement: Placement) -> Iterator[ir.Node]:
    """Yield the nodes that compute on the codes of a value, also behind those that only pass them on."""
    for use in value.uses():
        if _is_on_codes(use.node, placement):
            if use.node.op_type in PASSING:
                for out in use.node.outputs:
                    yield from _readers(out, placement)
            else:
                yield use.node


def _is_on_codes(node: ir.Node, placement: Placement) -> bool:
    return name_of(node) in placement.integer_nodes
