"""Choice of the channels that cost least for the products they take: bundles, until few enough products are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ptq.core.arrays import Float
from ptq.core.channel_refit import Block, Elimination
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.links import Axis, Indices, Mask
from ptq.passes.channels.products import Products

ROOM = 4
"""Bundles in a set of alike channels, at least, where whole vectors of kernels save too little."""


LEAST = 4
"""Channels that go at once, at least: convolutions take far longer for counts that are no multiple of it."""

CONSIDERED = 4
"""Channels that are looked at for each that goes, those that cost least alone."""


@dataclass(frozen=True)
class Offer:
    """Bundle of channels that may go next.

    Attributes:
        groups: Which.
        cost: Share of the outputs' variance that the layers which sum over them lose.
    """

    groups: Indices
    cost: float


def cheapest(
    groups: ChannelGroups,
    layers: Mapping[Axis, tuple[Elimination, ...]],
    products: Products,
    most: float,
    lanes: int,
) -> Mask:
    """Choose channels until few enough products are left, or nothing may go.

    Args:
        groups: The channels of a model.
        layers: Axis that layers sum over -> what each of those layers loses; axes that are left out stay as they are.
        products: Counts products.
        most: Products that may be left.
        lanes: Channels that kernels take at once: as many go together.

    Returns:
        Which groups go. Shape [groups].
    """
    removed, layers = np.zeros(len(groups.fixed), np.bool_), dict(layers)
    sets = list(_sets(groups, layers))
    whole = [lanes for _ in sets]
    for sizes in (whole, [_bundle(alike, lanes) for alike in sets]):  # kernels gain nothing by parts of what they take
        _take(_State(groups, products, layers, removed), sets, sizes, most)
    return removed


@dataclass(frozen=True)
class Alike:
    """Groups that lie along the same axes.

    Attributes:
        groups: Which.
        read: Those of the axes that layers sum over.
        is_grouped: Whether a convolution in groups reads them: its kernel takes what fills no vector one by one.
    """

    groups: Indices
    read: tuple[Axis, ...]
    is_grouped: bool


@dataclass(frozen=True)
class _State:
    """Channels that are left by now, changed in place."""

    groups: ChannelGroups
    products: Products
    layers: dict[Axis, tuple[Elimination, ...]]
    removed: Mask

    def take(self, gone: Indices, axes: Iterable[Axis]) -> None:
        """Take groups away that layers sum over along some axes."""
        self.removed[gone] = True
        for axis in axes:
            block = np.flatnonzero(np.isin(self.groups.axes[axis], gone))
            self.layers[axis] = tuple(each.without(block) for each in self.layers[axis])


def _take(state: _State, sets: Sequence[Alike], sizes: Sequence[int], most: float) -> None:
    """Take the bundle that costs least per product, again and again."""
    offers = dict[int, Offer]()
    while (left := state.products.count(state.removed)) > most:
        rates = dict[int, tuple[float, float]]()
        for index, (alike, size) in enumerate(zip(sets, sizes, strict=True)):
            staying = alike.groups[~state.removed[alike.groups]]
            going = len(staying) % size or size
            if len(staying) > going:
                if index not in offers:
                    own = {axis: state.layers[axis] for axis in alike.read}
                    offers[index] = _offer(state.groups, staying, own, going)
                saved = left - state.products.count(_with(state.removed, offers[index].groups))
                rates |= {index: (saved, offers[index].cost)} if saved > 0 else {}
        if not rates:
            return
        best = min(rates, key=lambda each: (rates[each][1] / rates[each][0], each))
        enough = [index for index, (saved, _) in rates.items() if left - saved <= most]
        if best in enough:  # the last one: what it saves beyond that counts for nothing
            best = min(enough, key=lambda each: (rates[each][1], each))
        changed = set(sets[best].read)
        state.take(offers[best].groups, changed)
        offers = {index: offer for index, offer in offers.items() if not changed & set(sets[index].read)}


def _sets(groups: ChannelGroups, layers: Mapping[Axis, object]) -> Iterator[Alike]:
    """Yield sets of groups that may go."""
    places: list[list[int]] = [[] for _ in groups.fixed]
    axes = list(groups.axes)
    for index, axis in enumerate(axes):
        for group in np.unique(groups.axes[axis]):
            places[group].append(index)
    alike = dict[tuple[int, ...], list[int]]()
    for group, at in enumerate(places):
        if not groups.fixed[group]:
            alike.setdefault(tuple(at), []).append(group)
    for where, members in alike.items():
        along = [axes[index] for index in where]
        read = tuple(axis for axis in along if axis in groups.sources)
        if read and all(axis in layers for axis in read):
            yield Alike(np.array(members), read, any(map(_is_grouped, along)))


def _is_grouped(axis: Axis) -> bool:
    nodes = [use.node for use in axis.value.uses()]
    return any("Conv" in node.op_type and node.attributes.get_int("group", 1) > 1 for node in nodes)


def _bundle(alike: Alike, lanes: int) -> int:
    """Return how many of some channels go at once where whole vectors save too little."""
    size, count, room = max(lanes, 1), len(alike.groups), 1 if alike.is_grouped else ROOM
    while size > LEAST and count < room * size:
        size //= 2
    return size


def _offer(
    groups: ChannelGroups, staying: Indices, layers: Mapping[Axis, tuple[Elimination, ...]], going: int
) -> Offer:
    """Take the channels that cost least, one after the other, the others refitted each time."""
    parts = [(groups.axes[axis], each) for axis, own in layers.items() for each in own]
    order = np.argsort(_costs(staying, parts), kind="stable")
    considered = np.sort(staying[order[: going * CONSIDERED]])
    within = [np.flatnonzero(np.isin(at, considered)) for at, _ in parts]
    parts = [(at[those], each.among(those)) for those, (at, each) in zip(within, parts, strict=True)]
    taken, total = list[int](), 0.0
    while len(taken) < going:
        costs = np.where(np.isin(considered, taken), np.inf, _costs(considered, parts))
        group = int(considered[int(np.argmin(costs))])
        total += float(costs.min())
        taken.append(group)
        parts = [(at, each.without(np.flatnonzero(at == group))) for at, each in parts]
    return Offer(np.array(taken), total)


def _costs(wanted: Indices, parts: Sequence[tuple[Indices, Elimination]]) -> Float:
    """Sum up what groups cost layers: for each the group of every channel and the layer. Shape [wanted], in order."""
    return np.asarray(np.sum([_costs_in(wanted, at, layer) for at, layer in parts], axis=0))


def _costs_in(wanted: Indices, at: Indices, layer: Elimination) -> Float:
    """Return what groups cost one layer; 0 for those that are gone."""
    order = np.argsort(at, kind="stable")
    starts, ends = (np.searchsorted(at[order], wanted, side) for side in ("left", "right"))
    if np.all(ends - starts == 1):
        return layer.costs[order[starts]]
    blocks: list[Block] = [order[start:end] for start, end in zip(starts, ends, strict=True)]
    return np.array([layer.cost(block) if layer.inverse[block[0], block[0]] > 0 else 0.0 for block in blocks])


def _with(removed: Mask, more: Indices) -> Mask:
    both = removed.copy()
    both[more] = True
    return both
