"""Pruning on request: channels that cost the outputs least leave, and the layers behind are fitted to the others."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.collect import collect
from ptq.calibration.refitting import walk
from ptq.calibration.statistics import MomentsOf, Wanted
from ptq.core.channel_refit import Elimination, refit
from ptq.core.errors import RecipeError
from ptq.passes.channels.cheapest import cheapest
from ptq.passes.channels.fold import Told
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Mask, Read, extent
from ptq.passes.channels.products import Products
from ptq.passes.channels.refit_weights import fitting, install, refit_layers
from ptq.passes.channels.remove import RemoveChannels
from ptq.passes.channels.removed import REFITTED, REMOVED, note_with
from ptq.passes.graph import initializer_of
from ptq.passes.linear import constant
from ptq.transforms.rewritten import Rewritten

SAMPLES = 512
"""Samples that channels are weighed and layers fitted on."""


@dataclass(frozen=True)
class PruneChannels:
    """Remove the channels that the outputs need least, until few enough products are left.

    Source:
        The closed form is that of Optimal Brain Surgeon by blocks, and of channel pruning by reconstruction, arXiv
        1707.06168. Differs: the order is that of error per product saved, each channel counted with the others refitted
        already; every layer is refitted to what the network without channels gives it by then.

    Attributes:
        share: Products that may be left, as a share of those of the model as it came.
        lanes: Channels that kernels take at once.
    """

    share: float
    lanes: int = 16

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Remove channels and refit what is behind them.

        Args:
            state: The model so far. Not modified.
            calibration: Its first samples are looked at.

        Returns:
            The new state; `state` itself where few enough products are left already.

        Raises:
            RecipeError: The share cannot be reached, or the samples are random numbers.
        """
        if calibration.is_random:
            raise RecipeError("max_macs refits layers to what they see, and random data shows nothing; give --data")
        model, groups = state.model, ChannelGroups.of(state.model)
        products = Products.of(model, groups, calibration.first, calibration.custom_ops)
        before = _products_of(state.whole or model, calibration)
        most = self.share * before
        if products.count(np.zeros(len(groups.fixed), np.bool_)) <= most:
            return state
        calibration.progress("prune")
        layers = _layers(model, groups, calibration)
        removed = cheapest(groups, layers, products, most, self.lanes)
        after = products.count(removed)
        if not removed.any():
            raise RecipeError(f"max_macs is {self.share:.3g}; there is no channel that may go; leave out --max-macs")
        if after > most:
            raise RecipeError(
                f"max_macs is {self.share:.3g}; {after / before:.1%} of the products are left when all that may go is "
                f"gone; give --max-macs {int(np.ceil(100 * after / before))}%"
            )
        changed = _without(model, groups, removed)
        fitted = _refit(model, changed, groups, removed, calibration)
        changed.metadata_props[REFITTED] = json.dumps(fitted)
        changed.metadata_props[REMOVED] = note_with(state.whole, model, groups, removed)
        words = (
            f"{int(removed.sum())} channels that cost the outputs least left the model, "
            f"{len(fitted)} layers were refitted: {_millions(before)} -> {_millions(after)} products per sample "
            f"({after / before:.1%})"
        )
        return replace(state, model=changed, whole=state.whole or model, notes=(*state.notes, words))


def _products_of(model: ir.Model, calibration: CalibrationSet) -> float:
    """Count the products of a whole model."""
    groups = ChannelGroups.of(model)
    products = Products.of(model, groups, calibration.first, calibration.custom_ops)
    return products.count(np.zeros(len(groups.fixed), np.bool_))


def _layers(model: ir.Model, groups: ChannelGroups, calibration: CalibrationSet) -> dict[Axis, tuple[Elimination, ...]]:
    """Look at what layers sum over: axes of which every layer can be refitted."""
    sources = {
        axis: reads for axis, reads in groups.sources.items() if all(fitting(read.node) is not None for read in reads)
    }
    sources = dict({str(axis.value.name): (axis, reads) for axis, reads in sources.items()}.values())
    wanted: Wanted = {str(axis.value.name): (MomentsOf(axis.axis),) for axis in sources}
    if not wanted:
        return {}
    feeds, ops = calibration.ahead(SAMPLES), calibration.custom_ops
    seen = collect(model, feeds, wanted, custom_ops=ops, engine=calibration.executor).statistics.of(MomentsOf.tag)
    return {
        axis: tuple(Elimination.of(_matrix(read), seen[str(axis.value.name)].covariance) for read in reads)
        for axis, reads in sources.items()
    }


def _matrix(read: Read) -> np.ndarray:
    """Return a layer's weight over the channels that it sums over: each tap of a kernel is a feature of its own."""
    weight = constant(read.weight.value)
    moved = np.moveaxis(np.zeros((1, extent(read.weight) or 0)) if weight is None else weight, read.weight.axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _without(model: ir.Model, groups: ChannelGroups, removed: Mask) -> ir.Model:
    """Copy a model without channels, as if they were zero."""
    told = {
        (str(axis.value.name), axis.axis): Told(np.zeros(len(groups.axes[axis])))
        for axis in groups.sources
        if removed[groups.axes[axis]].any()
    }
    changed = model.clone()
    RemoveChannels(removed, told)(changed)
    return changed


def _refit(
    model: ir.Model, changed: ir.Model, groups: ChannelGroups, removed: Mask, calibration: CalibrationSet
) -> list[str]:
    """Refit every layer whose input is not what it was, in dataflow order; return their names."""
    pairs = list(refit_layers(model, changed, groups, removed))
    feeds, store, fitted = calibration.ahead(SAMPLES), calibration.samples.store, list[str]()
    for pair, view, halves in walk(model, changed, pairs, feeds, store, calibration.custom_ops):
        wanted = pair.original.layout.to_matrix(initializer_of(model, pair.original.weight))[pair.features]
        held = pair.changed.layout.to_matrix(initializer_of(changed, pair.changed.weight))
        shifts = pair.has_bias and view.taps == 1
        weight, constants = refit(halves, view.matrix(wanted), view.matrix(held), shifts=shifts)
        install(changed, pair.changed, view.weight(weight), constants if shifts else None)
        fitted.append(pair.changed.name)
    return fitted


def _millions(count: float) -> str:
    return f"{count / 1e6:.3g} million"
