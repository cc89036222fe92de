"""Tied tables: one set of codes for the rows that are picked and for the product that they are the weight of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ptq.core.channel_mean import ChannelMean
from ptq.core.encoding import WeightEncoding
from ptq.core.solved_layer import SolvedLayer
from ptq.core.spec import PerBlock
from ptq.passes.placement import Placement
from ptq.solving.choices import BYTE, Choices
from ptq.solving.layer_solver import LayerSolver

COARSER = 2.0
"""Energy of a table's error over that of plain rounding beyond which the codes of its product do not suit its rows."""


def with_tied(settings: Choices, placement: Placement) -> Choices:
    """Give products that are tied to a table words as long as the table's: nothing corrects the errors of picked rows.

    Blocks keep their words, which a kernel of their own reads; so do layers that a rule speaks of.
    """
    layers, overrides = {layer.name: layer for layer in placement.layers}, dict(settings.overrides)
    for table in placement.tables:
        layer = layers.get(table.product)
        if layer is None or layer.name in overrides or isinstance(settings.choice(layer).spec.granularity, PerBlock):
            continue
        bits = max(settings.choice(table).spec.num_bits, settings.weights.spec.num_bits)
        spec = replace(settings.weights.spec, num_bits=bits, narrow_range=bits == BYTE)
        overrides[layer.name] = replace(settings.weights, spec=spec, split="never")
    return replace(settings, overrides=overrides)


def share_codes(
    placement: Placement,
    jobs: Mapping[str, LayerSolver],
    solved: Mapping[str, SolvedLayer],
    rows: Mapping[str, WeightEncoding],
    means: Mapping[str, ChannelMean],
) -> tuple[dict[str, SolvedLayer], dict[str, WeightEncoding]]:
    """Let tied tables and their products have the same codes.

    A method that looks at inputs moves codes to where the product errs least. The rows that are picked are rounded once
    more by that; where they lose too much, both take what plain rounding gives.

    Args:
        placement: Tables and layers.
        jobs: Solvers of the layers.
        solved: Weights of the layers.
        rows: Weights of the tables by themselves, rounded.
        means: Value name -> means of its channels, for biases.

    Returns:
        Weights of the layers, and of the tables.
    """
    layers, tables = dict(solved), dict(rows)
    for table in placement.tables:
        if not table.product:
            continue
        job, plain, own = jobs[table.product], rows[table.name], solved[table.product].encoding
        weight = job.arrays.weight
        errors = [float(np.square(each.decode() - weight).sum()) for each in (own, plain)]
        fits = isinstance(job.choice.spec.granularity, PerBlock) or job.settings.saturates
        if errors[0] > COARSER * errors[1] and not fits:
            layers[table.product] = job.take(plain, means.get(job.layer.source))
        tables[table.name] = layers[table.product].encoding
    return layers, tables
