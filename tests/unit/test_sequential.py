"""The walk through a network, and what it is made of: segments, store, damping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq.calibration.collect import collect
from ptq.calibration.replay import SampleReplay
from ptq.calibration.segments import SegmentedRun
from ptq.calibration.sequential import SequentialWalk
from ptq.calibration.store import ArrayStore
from ptq.core.affine import dequantize, quantize
from ptq.core.damping import STRENGTHS, HeldMoments, LayerMoments, choose_damping
from ptq.core.encoding import IntegerWeight
from ptq.core.layer_statistics import LayerStatistics
from ptq.models.sessions import run, session_of
from ptq.passes.infer_shapes import exposed
from ptq.passes.insert_qdq import lower_layers
from ptq.passes.placing import place
from ptq.recipe import Recipe
from ptq.solving.choices import choices_of
from ptq.solving.grids import wanted_of
from ptq.solving.plan import Problem, make_plan
from ptq.target import CPU_X86
from tests.builders import model_from_text, random

BRANCHES = """
net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    c = Conv (b, w2)
    d = Conv <pads = [1, 1, 1, 1]> (b, w3)
    two = Add (one, one)
    scaled = Mul (d, two)
    s = Add (c, scaled)
    t = Add (s, a)
    y = Conv (t, w4)
}
"""
WEIGHTS = {
    "w1": random((4, 3, 3, 3)),
    "w2": random((4, 4, 1, 1), 1),
    "w3": random((4, 4, 3, 3), 2),
    "w4": random((4, 4, 1, 1), 3),
    "one": np.ones((1, 1, 1, 1), np.float32),
}
STOPS = [("x",), ("b",), ("t",), ("y",)]


def values(model: ir.Model, names: list[str], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    with session_of(exposed(model, names), optimization="none") as session:
        return run(session, {"x": x}, names)


@pytest.mark.parametrize("budget", [0, 2_000, 1 << 30])
def test_segments_give_what_the_whole_model_gives(budget: int) -> None:
    model, chunks = model_from_text(BRANCHES, WEIGHTS), [random((n, 3, 8, 8), n) for n in (2, 1, 3)]
    with ArrayStore(budget) as store:
        walk = SegmentedRun(model, STOPS, store, "net")
        for chunk in chunks:
            walk.feed({"x": chunk})
        for stop in STOPS:
            for (found,), chunk in zip(walk.advance(), chunks, strict=True):
                np.testing.assert_allclose(found, values(model, list(stop), chunk)[0], rtol=1e-5, atol=1e-5)
        assert (store.spilled > 0) == (budget < 1 << 30)


def test_a_weight_changed_before_its_segment_counts() -> None:
    model, x = model_from_text(BRANCHES, WEIGHTS), random((2, 3, 8, 8), 5)
    with ArrayStore(1 << 30) as store:
        walk = SegmentedRun(model, STOPS, store, "net")
        walk.feed({"x": x})
        for _ in (0, 1):
            list(walk.advance())
        model.graph.initializers["w3"].const_value = ir.tensor(random((4, 4, 3, 3), 9), name="w3")
        ((found,),) = list(walk.advance())
    np.testing.assert_allclose(found, values(model, ["t"], x)[0], rtol=1e-5, atol=1e-5)


def test_every_node_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    cut = SegmentedRun._cut

    def counted(self: SegmentedRun, indices: Sequence[int], *rest: Sequence[str]) -> bytes:
        seen.extend(indices)
        return cut(self, indices, *rest)

    monkeypatch.setattr(SegmentedRun, "_cut", counted)
    model = model_from_text(BRANCHES, WEIGHTS)
    with ArrayStore(1 << 30) as store:
        walk = SegmentedRun(model, STOPS, store, "net")
        walk.feed({"x": random((1, 3, 8, 8))})
        for _ in STOPS:
            list(walk.advance())
    assert sorted(seen) == list(range(len(model.graph)))


def test_spilled_files_go_with_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ArrayStore(32) as store:
        store.put("a", np.arange(4.0))
        store.put("b", np.arange(5.0))
        assert list(tmp_path.rglob("*.npy"))
        np.testing.assert_array_equal(store.get("b"), np.arange(5.0))
        store.drop("b")
        assert not list(tmp_path.rglob("*.npy"))
        store.put("c", np.arange(3.0))
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=30), st.integers(0, 200))
def test_a_store_is_a_dictionary_whatever_its_budget(steps: list[tuple[int, int]], budget: int) -> None:
    twin: dict[int, NDArray[np.float64]] = {}
    with ArrayStore(budget) as store:
        for key, size in steps:
            if key in twin:
                store.drop(key)
                del twin[key]
            else:
                twin[key] = np.arange(float(size))
                store.put(key, twin[key])
            for other, array in twin.items():
                np.testing.assert_array_equal(store.get(other), array)


def moments(noise: float, seed: int = 0, outputs: int = 6) -> tuple[LayerMoments, NDArray[np.float32]]:
    """Rows whose quantized version has a systematic error and `noise`."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, 10)).astype(np.float32)
    mixing = np.eye(10) + 0.2 * rng.standard_normal((10, 10))

    def half() -> tuple[LayerStatistics, LayerStatistics]:
        original = rng.standard_normal((1, 50, 1, 10)) + rng.standard_normal((1, 50, 20, 10))
        given = original @ mixing + noise * rng.standard_normal(original.shape)
        flat = [each.reshape(1, -1, 10) for each in (given, original)]
        pooled = [each.mean(2) for each in (given, original)]
        return LayerStatistics.of(flat[0], weight, flat[1]), LayerStatistics.of(pooled[0], weight, pooled[1])

    (first, first_pooled), (second, second_pooled) = half(), half()
    return LayerMoments((first, second), (first_pooled, second_pooled)), weight


def test_systematic_errors_are_undone_and_noise_is_not() -> None:
    strong, weak = (choose_damping(*moments(noise)) for noise in (0.01, 5.0))
    assert strong <= 0.01
    assert weak >= 1.0


@pytest.mark.parametrize("noise", [0.01, 0.3, 5.0])
def test_some_outputs_of_many_choose_as_all_do(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    many = moments(noise, outputs=1000)
    some = choose_damping(*many)
    monkeypatch.setattr("ptq.core.damping.JUDGED", 1000)
    assert choose_damping(*many) == some


@pytest.mark.parametrize("strength", STRENGTHS)
def test_damping_leaves_the_float_weight_where_both_networks_agree(strength: float) -> None:
    rows, weight = np.random.default_rng(0).standard_normal((1, 30, 5)), np.ones((2, 5), np.float32)
    seen, matched = (LayerStatistics.of(rows, weight) for _ in range(2))
    np.testing.assert_array_equal(HeldMoments.of(matched, weight, strength).damped().gram, seen.gram)
    assert matched.matched
    held = HeldMoments.of(LayerStatistics.of(rows, weight, rows.copy()), weight, strength)
    for share in (0.0, 0.3):
        statistics = replace(held, _share=share).damped()
        target = np.linalg.solve(statistics.gram[0], (weight @ statistics.cross[0].T).T).T
        np.testing.assert_allclose(target, weight, rtol=1e-6)
    np.testing.assert_array_equal(held.plain().gram, seen.gram)
    twin = LayerStatistics.of(rows, weight, rows.copy())
    np.testing.assert_array_equal(held.plain().cross, seen.gram if np.isinf(strength) else twin.cross)
    np.testing.assert_array_equal(held.asked, twin.target_correlation(weight))


def test_samples_come_back_once_and_in_order() -> None:
    feeds = [{"x": np.full((1, 2), i)} for i in range(5)]
    with ArrayStore(20) as store:
        samples = SampleReplay(store)
        assert [feed["x"][0, 0] for feed in samples.record(feeds)] == list(range(5))
        assert [feed["x"][0, 0] for feed in samples.replay()] == list(range(5))
        assert not list(samples.replay())


def test_each_layer_sees_what_its_quantized_predecessors_give_it() -> None:
    """The obvious twin: lower the whole model anew for every layer, run it from the start, keep all rows."""
    model, feeds = model_from_text(BRANCHES, WEIGHTS), [{"x": random((1, 3, 8, 8), n)} for n in range(6)]
    placement, recipe = place(model), Recipe()
    choices = choices_of(recipe, CPU_X86, model)
    seen = collect(model, feeds, wanted_of(placement)).statistics
    with ArrayStore(1 << 30) as store:
        samples = SampleReplay(store)
        plan, _ = make_plan(Problem(model, placement, seen.histograms, seen.means, choices, samples, feeds[0]))
        list(samples.record(feeds))
        walk = SequentialWalk(model, placement, plan, placement.layers, samples)
        weights = dict(plan.weights)
        for layer, found in walk.layers():
            lowered = model.clone()
            names = lower_layers(lowered, replace(plan, weights=weights), placement, compact=False)
            given, original = [], []
            for feed in feeds:
                (codes,) = values(lowered, [names[layer.name].source], feed["x"])
                given.append(layer.unfold.rows(dequantize(codes, plan.activations[layer.source])))
                original.append(layer.unfold.rows(values(model, [layer.source], feed["x"])[0]))
            weight = layer.layout.to_matrix(WEIGHTS[layer.weight])
            twin = LayerStatistics.of(np.concatenate(given, 1), weight, np.concatenate(original, 1))
            whole = found.whole()
            for field in ("gram", "cross", "energy"):
                expected = getattr(twin, field)
                np.testing.assert_allclose(
                    getattr(whole, field), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
                )
            params = replace(plan.weights[layer.name].params, scale=plan.weights[layer.name].params.scale * 2)
            coarse = IntegerWeight.of(quantize(weight, params), params)
            weights[layer.name] = coarse
            walk.install(layer, coarse, plan.biases.get(layer.name))
