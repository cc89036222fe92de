"""Parts that squeezing is made of, against slow and obvious twins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.collect import collect
from ptq.calibration.reader import open_data
from ptq.calibration.record import KINDS, SILENT, CalibrationRecord
from ptq.calibration.replay import SampleReplay
from ptq.calibration.shards import CalibrationShards
from ptq.calibration.split import EVERY, SampleSplit, split_samples
from ptq.calibration.statistics import MeanOf, SpreadOf
from ptq.calibration.store import ArrayStore
from ptq.core.archive import freeze, thaw
from ptq.core.channel_spread import NOBODY, ChannelSketch, ChannelSpread, Multiples
from ptq.core.progress import silent
from ptq.models.source import input_specs
from ptq.passes.channels.groups import connected
from ptq.passes.channels.removed import REMOVED, count_removed, left_of, without_removed
from ptq.passes.channels.shape_links import stretches
from ptq.passes.infer_shapes import annotate
from tests.builders import conv_net, feeds, random
from tests.squeezing import CHANNELS, Net, Plants, require_same, squeezed
from tests.unit.test_squeeze_stays import conv, everywhere


def by_walking(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """Number components by walking along edges from each node in turn."""
    numbers = [-1] * count
    for start in range(count):
        if numbers[start] < 0:
            fresh, stack = max(numbers, default=-1) + 1, [start]
            while stack:
                node = stack.pop()
                if numbers[node] < 0:
                    numbers[node] = fresh
                    stack.extend(b if a == node else a for a, b in edges if node in (a, b))
    return numbers


@given(st.integers(1, 25), st.data())
def test_components(count: int, data: st.DataObject) -> None:
    node = st.integers(0, count - 1)
    groups = data.draw(st.lists(st.lists(st.tuples(node, node), max_size=6), max_size=5))
    pairs = [(np.array([a for a, _ in g], np.int64), np.array([b for _, b in g], np.int64)) for g in groups]
    assert connected(count, pairs).tolist() == by_walking(count, [edge for group in groups for edge in group])


def test_components_of_a_long_chain() -> None:
    order = np.random.default_rng(0).permutation(20000)
    assert not connected(20000, [(order[:-1], order[1:])]).any()


sizes = st.lists(st.one_of(st.integers(1, 4), st.sampled_from(["N", "S"]), st.none()), max_size=5)


@given(sizes, sizes)
def test_stretches_have_the_same_products_and_lie_at_the_same_places(before: list[Any], after: list[Any]) -> None:
    """Whatever the unknown extents are: if the numbers before a stretch agree, so do those of the stretch."""
    runs = list(stretches(before, after))
    for side in (0, 1):
        axes = [axis for run in runs for axis in run[side]]
        assert len(set(axes)) == len(axes)
        assert all(list(run[side]) == list(range(run[side][0], run[side][-1] + 1)) for run in runs)
    for ins, outs in runs:
        left, right = ([sizes[axis] for axis in axes] for sizes, axes in ((before, ins), (after, outs)))
        assert (left == right and len(left) == 1) or math.prod(left) == math.prod(right)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_stretches_of_shapes_that_divide_each_other(shape: list[int], data: st.DataObject) -> None:
    """All extents known: every axis is in a stretch, and stretches that merge axes keep the order of numbers."""
    cuts = data.draw(st.lists(st.booleans(), min_size=len(shape) - 1, max_size=len(shape) - 1))
    merged, sizes = [], [shape[0]]
    for cut, size in zip(cuts, shape[1:], strict=True):
        if cut:
            merged.append(math.prod(sizes))
            sizes = []
        sizes.append(size)
    merged.append(math.prod(sizes))
    for ins, outs in stretches(list(shape), list(merged)):
        inner = math.prod(shape[ins[-1] + 1 :])
        assert inner == math.prod(merged[outs[-1] + 1 :])


columns = st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=7)


@given(columns)
def test_multiples_are_those_of_the_first_that_is_alike(rows: list[list[int]]) -> None:
    sketches = np.array(rows, float).T
    found = Multiples.of(sketches)
    for place, row in enumerate(rows):
        same = [i for i in range(place) if any(rows[i]) and any(row) and not np.any(np.cross(rows[i], row))]
        assert found.leaders[place] == (same[0] if same else NOBODY)
        if same:
            np.testing.assert_allclose(found.factors[place] * sketches[:, same[0]], row, atol=1e-9)


@given(columns)
def test_groups_of_one_are_channels(rows: list[list[int]]) -> None:
    sketches = np.array(rows, float).T
    numbers = np.random.default_rng(0).permutation(len(rows)) + 5
    one, other = Multiples.of(sketches), Multiples.of_groups(sketches, numbers)
    np.testing.assert_array_equal(one.leaders, other.leaders)
    np.testing.assert_array_equal(one.factors, other.factors)


def test_groups_are_multiples_as_a_whole() -> None:
    base = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 5.0]])
    other = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 5.0]])
    sketches = np.concatenate([base, other, base * 2], 1)[:, [0, 3, 6, 1, 4, 7, 2, 5, 8]]  # laid out place by place
    found = Multiples.of_groups(sketches, np.tile([4, 9, 2], 3))
    assert found.leaders.tolist() == [-1, -1, 0, -1, -1, 3, -1, -1, 6]
    assert found.factors[[2, 5, 8]].tolist() == [2.0, 2.0, 2.0]


def spread(seed: int) -> ChannelSpread:
    values = np.random.default_rng(seed).standard_normal((2, 3, 4)).round(1)
    return ChannelSpread.of(values, 1, Multiples(np.array([NOBODY, 0, 1]), np.array([0.0, 1.0, -2.0])))


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3))
def test_spreads_add_up_in_any_order(seeds: list[int]) -> None:
    a, b, c = map(spread, seeds)
    for one, other in ((a.merge(b), b.merge(a)), (a.merge(b).merge(c), a.merge(b.merge(c))), (a.merge(a), a)):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@given(st.integers(0, 10**6))
def test_a_spread_is_what_it_says(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((5, 3, 4))
    seen = ChannelSpread.of(values[:1], 1)
    for value in values[1:]:
        seen = seen.merge(ChannelSpread.of(value[None], 1))
    np.testing.assert_array_equal(seen.low, values.min((0, 2)))
    np.testing.assert_array_equal(seen.high, values.max((0, 2)))
    np.testing.assert_array_equal(seen.low_of_highs, values.max(2).min(0))
    np.testing.assert_array_equal(seen.high_of_lows, values.min(2).max(0))


def test_sketches_do_not_depend_on_the_order() -> None:
    parts = [ChannelSketch.of(random((1, 6, 3), i), 1, i) for i in range(3)]
    one, other = parts[0].merge(parts[1]).merge(parts[2]), parts[2].merge(parts[0].merge(parts[1]))
    groups = np.arange(6)
    np.testing.assert_array_equal(one.multiples(groups).factors, other.multiples(groups).factors)


def test_spreads_come_back_from_a_file() -> None:
    model, data = conv_net(), feeds(4, 3, 16, 16)
    annotate(model, data[0])
    wanted = {"r": (SpreadOf(1, (-1, 0, *[-1] * 6), (0.0, 0.5, *[0.0] * 6)), MeanOf(1)), "f": (SpreadOf(1),)}
    record = CalibrationRecord().with_stage(SILENT, collect(model, data, wanted))
    again = thaw(freeze(record), KINDS)
    for name in wanted:
        one, other = (each.stages[SILENT].statistics.of(SpreadOf.tag)[name] for each in (record, again))
        assert all(np.array_equal(getattr(one, key), getattr(other, key)) for key in vars(one))


def split(count: int, *, hold_out: bool) -> SampleSplit:
    model = conv_net()
    return split_samples(open_data(feeds(count, 3, 16, 16), input_specs(model)), hold_out=hold_out)


@pytest.mark.parametrize("hold_out", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("wanted", [1, EVERY - 1, EVERY, EVERY + 1, 3 * EVERY])
def test_the_first_samples_are_the_same_before_and_after_a_pass(count: int, wanted: int, hold_out: bool) -> None:
    with ArrayStore(1 << 30) as store:
        samples = split(count, hold_out=hold_out)
        given_set = CalibrationSet(samples, SampleReplay(store), CalibrationShards(), silent)
        before = [sample["x"] for sample in given_set.ahead(wanted)]
        model = conv_net()
        annotate(model, given_set.first)
        given_set.observe(model, {"r": (SpreadOf(1),)}, SILENT, again=True)
        after = [sample["x"] for sample in given_set.ahead(wanted)]
    assert len(before) == len(after) > 0
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pads", ["", "<pads = [1, 1, 1, 1]>"])
def test_a_note_takes_the_same_channels_out_of_the_float_model(seed: int, pads: str) -> None:
    plants = Plants(seed)
    weight, bias = plants.layer(CHANNELS, 3, 3, 3)
    other = max(set(range(CHANNELS)) - set(plants.at.values()))
    weight[other], bias[other] = 0, 0.4
    net: Net = conv(
        f"y = Conv {pads} (r, v, d)", plants, everywhere([]), w=weight, b=bias, v=random((6, CHANNELS, 3, 3), seed)
    )
    after, before = squeezed(net), net.model()
    samples = net.samples(3, seed=77)
    annotate(before, samples[0])
    again = without_removed(before, after, samples[0])
    assert count_removed(after) == (4 if pads else 5)
    assert again.graph.initializers["v"].shape == after.graph.initializers["v"].shape
    require_same(before, again, samples)


@pytest.mark.parametrize("note", ["{}", "[]", "no", '{"r:1": 3}', '{"r:1": ["ff", [[0, 99, 1]]]}', '{"r:1": "ffff"}'])
def test_notes_of_others_are_passed_over(note: str) -> None:
    net = conv("y = Conv (r, v, d)", Plants(0), {})
    before, stamped = net.model(), net.model()
    stamped.metadata_props[REMOVED] = note
    annotate(before, net.samples()[0])
    left_of(stamped)
    if "99" not in note:
        assert without_removed(before, stamped, net.samples()[0]) is before
