"""Squeezing: channels that carry nothing leave the model, and what is known of them goes into the next bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.collect import collect
from ptq.calibration.record import SILENT, CalibrationStatistics
from ptq.calibration.statistics import MeanOf, SketchOf, SpreadOf, Statistic, Wanted
from ptq.core.arrays import Feed
from ptq.core.channel_spread import NOBODY, ChannelSpread, Multiples
from ptq.core.errors import CalibrationError
from ptq.passes.channels.bounds import proved
from ptq.passes.channels.choose import Evidence, Leaving, choose
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Mask
from ptq.passes.channels.remove import RemoveChannels
from ptq.passes.channels.removed import REMOVED, note_of
from ptq.passes.channels.saturation import Margins
from ptq.passes.check_equivalence import Original
from ptq.recipe.channels import AUTO
from ptq.transforms.rewritten import Rewritten

FIRST_LOOK = 8
"""Samples that show what might carry nothing; the rest of the set is asked about that alone."""

LEAST_SAMPLES = 2
"""Samples from which on anything is believed constant that is not proved to be."""

NEAREST = 6
"""Distance from the edge of a flat end, times samples seen, over the range of what was seen, for a channel to be called
constant: the next sample of n is expected beyond the range of the others by 1 / n of it."""


@dataclass(frozen=True)
class Squeeze:
    """Remove channels that are constant, or a multiple of another one, whatever the input.

    Source:
        Widening and Squeezing: Towards Accurate and Efficient QNNs, arXiv 2002.00555, the second half. Differs: what
        carries nothing is found in the calibration set instead of learned, and nothing else is removed.

    Attributes:
        share: Largest movement of a channel that is called constant, as a share of its tensor's step at 8 bits.
        lanes: Between convolutions, as many channels stay as fill a multiple of this.
    """

    share: float = AUTO
    lanes: int = 16

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Remove what carries nothing on any sample, held out or not.

        Args:
            state: The model so far. Not modified.
            calibration: Its first samples are looked at; all of it, where they show something.

        Returns:
            The new state; `state` itself where nothing leaves.
        """
        model = state.model
        groups = ChannelGroups.of(model)
        if not groups.sources:
            return state
        calibration.progress("squeeze")
        leaving = self._leaving(model, groups, calibration)
        if not leaving.removed.any():
            return state
        changed = model.clone()
        RemoveChannels(leaving.removed, leaving.told)(changed)
        if self.share <= AUTO:  # beyond it is wanted that outputs change
            Original(model, calibration.first, calibration.custom_ops).require_same("Squeeze", changed)
        changed.metadata_props[REMOVED] = note_of(leaving)
        return replace(state, model=changed, whole=model, notes=(*state.notes, _note(model, changed, leaving)))

    def _leaving(self, model: ir.Model, groups: ChannelGroups, calibration: CalibrationSet) -> Leaving:
        """Return what leaves: what is proved, and what all samples show, if the first ones show anything more."""
        certain = choose(groups, _proved(model, groups, {}), self.lanes)
        if not self.share or calibration.is_random:
            return certain
        axes = _one_axis_each(groups)
        asked = _wanted(axes, {}, (SketchOf,))
        try:
            seen = _seen(model, calibration.ahead(FIRST_LOOK), asked, calibration)
        except CalibrationError:  # not finite: the look at all values names the first one
            return certain
        sketches = seen.of(SketchOf.tag)
        multiples = {axis: sketches[str(axis.value.name)].multiples(groups.axes[axis]) for axis in axes}
        silent = self._evidence(seen, _wanted(axes, multiples), groups)
        expected = choose(groups, _proved(model, groups, silent), self.lanes)
        if np.array_equal(expected.removed, certain.removed):
            return certain
        axes = [axis for axis in axes if expected.leaves(axis)]
        margins = Margins.behind(axes, model.graph, self.share)
        wanted = _wanted(axes, multiples, margins=margins)
        seen = calibration.observe(model, wanted, SILENT, again=True)
        if seen.num_samples < LEAST_SAMPLES:
            return certain
        held = [sample.feed for sample in calibration.split.held_out]
        seen = seen.merge(_seen(model, held, wanted, calibration)) if held else seen
        known = self._evidence(seen, wanted, groups, _far(seen, wanted, margins))
        return choose(groups, _proved(model, groups, known), self.lanes)

    def _evidence(
        self,
        seen: CalibrationStatistics,
        wanted: Wanted,
        groups: ChannelGroups,
        far: Mapping[Axis, Mask] = MappingProxyType({}),
    ) -> dict[Axis, Evidence]:
        """Judge what was seen; all channels are taken to be far from any edge where nobody looked."""
        spreads, means = seen.of(SpreadOf.tag), seen.means
        known = {}
        for axis in groups.sources:
            name = str(axis.value.name)
            spread_of = _spread_of(axis, wanted)
            if spread_of is None or name not in means:
                continue
            spread: ChannelSpread = spreads[name]
            limit = self.share * spread.step
            leaders, factors = np.array(spread_of.leaders, np.int64), np.array(spread_of.factors)
            leaders = np.where(spread.apart <= limit, leaders, NOBODY)
            values = np.clip(means[name].mean, spread.low, spread.high)
            silent = (spread.width <= limit) & far.get(axis, True)
            known[axis] = Evidence(silent, values, Multiples(leaders, factors), spread.width, limit)
        return known


def _proved(model: ir.Model, groups: ChannelGroups, seen: Mapping[Axis, Evidence]) -> dict[Axis, Evidence]:
    """Add what the weights prove to what was seen."""
    known = dict(seen)
    for axis, bounds in proved(groups.sources, model.graph).items():
        count = len(bounds.low)
        nothing = Evidence.none(count)
        other = known.get(axis, nothing)
        values = np.where(bounds.is_point, bounds.low, other.values)
        known[axis] = replace(other, constant=other.constant | bounds.is_point, values=values)
    return known


def _far(seen: CalibrationStatistics, wanted: Wanted, margins: Margins) -> dict[Axis, Mask]:
    """Return which channels are far enough from where they would begin to move."""
    spreads = seen.of(SpreadOf.tag)
    known = {axis: spreads[str(axis.value.name)] for axis in margins.asked() if _spread_of(axis, wanted)}
    return {axis: margin * seen.num_samples >= NEAREST for axis, margin in margins.of(known).items()}


def _spread_of(axis: Axis, wanted: Wanted) -> SpreadOf | None:
    """Return what was asked about an axis; None if its value was looked at along another one, or not at all."""
    asked = wanted.get(str(axis.value.name), ())
    return next((each for each in asked if isinstance(each, SpreadOf) and each.axis == axis.axis), None)


def _one_axis_each(groups: ChannelGroups) -> list[Axis]:
    """Return the axes that layers sum over, one of each value: a value is looked at along one axis."""
    return list({axis.value: axis for axis in reversed(tuple(groups.sources))}.values())


def _seen(model: ir.Model, feeds: Iterable[Feed], wanted: Wanted, calibration: CalibrationSet) -> CalibrationStatistics:
    return collect(model, feeds, wanted, custom_ops=calibration.custom_ops, engine=calibration.executor).statistics


def _wanted(
    axes: Iterable[Axis],
    multiples: Mapping[Axis, Multiples],
    more: Sequence[type[SketchOf]] = (),
    margins: Margins | None = None,
) -> dict[str, tuple[Statistic, ...]]:
    """Ask what channels do along some axes, and what they do in front of what may hold them still."""
    wanted = dict[str, tuple[Statistic, ...]]()
    for axis in axes:
        known = multiples.get(axis)
        leaders, factors = ((), ()) if known is None else (known.leaders.tolist(), known.factors.tolist())
        spread = SpreadOf(axis.axis, tuple(leaders), tuple(factors))
        wanted[str(axis.value.name)] = (spread, MeanOf(axis.axis), *(kind(axis.axis) for kind in more))
    for axis in () if margins is None else margins.asked():
        wanted.setdefault(str(axis.value.name), (SpreadOf(axis.axis),))
    return wanted


def _note(model: ir.Model, changed: ir.Model, leaving: Leaving) -> str:
    before, after = (sum(_size(value) for value in each.graph.initializers.values()) for each in (model, changed))
    return f"{int(leaving.removed.sum())} channels carry nothing and left the model: {before} -> {after} weights"


def _size(value: ir.Value) -> int:
    """Count the numbers of a constant that something reads."""
    return 0 if value.const_value is None or not value.uses() else value.const_value.size
