"""The fastest plan: what divides the graph, and that nothing slower is ever taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import ptq.tuning.latency as latencies
from ptq import Recipe, quantize
from ptq.allocation.divide import NodeTimes, Price, divide
from ptq.analysis.bench import Setting
from ptq.analysis.nodes import NodeTime, node_times
from ptq.cli import main
from ptq.core.errors import RecipeError
from ptq.models.load import load_model
from ptq.passes import place, prepare
from ptq.passes.linear import name_of
from ptq.recipe import LayerRule
from tests.builders import feeds, model_from_text, random

LATENCY = Recipe(optimize="latency", target="cpu-x86")


def net() -> ir.Model:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, v)
        d = Add (b, c)
        e = Relu (d)
        f = Conv <pads = [1, 1, 1, 1]> (e, w)
        y = Sigmoid (f)
    }"""
    weights = {"u": random((8, 3, 3, 3), 1), "v": random((8, 8, 3, 3), 2), "w": random((8, 8, 3, 3), 3)}
    return model_from_text(text, weights)


def cost(
    chosen: set[str], model: ir.Model, placement: Any, times: Mapping[str, tuple[float, float]], price: float
) -> float:
    """The obvious way: each node's time, and a conversion for each value that is needed as what it is not."""
    total = sum(times[name][0 if name in chosen else 1] for name in times)
    with_grid = {name for group in placement.groups for name in group}
    for value in (*model.graph.inputs, *(node.outputs[0] for node in model.graph)):
        producer, readers = value.producer(), [name_of(use.node) for use in value.uses()]
        if str(value.name) not in with_grid:
            continue
        codes = producer is not None and name_of(producer) in chosen and str(value.name) in placement.produced
        wants_codes = any(reader in chosen for reader in readers)
        wants_float = any(reader not in chosen for reader in readers) or value.is_graph_output()
        total += price * ((wants_codes and not codes) + (wants_float and codes))
    return total


def test_the_division_is_the_cheapest_of_all() -> None:
    model, _ = prepare(net(), feeds(1, 3, 8, 8)[0])
    placement = place(model)
    for seed in range(30):
        check_division(model, placement, np.random.default_rng(seed))


def check_division(model: ir.Model, placement: Any, generator: np.random.Generator) -> None:
    able = sorted(placement.integer_nodes)
    times = {
        name: (float(a), float(b)) for name, (a, b) in zip(able, generator.uniform(0, 10, (len(able), 2)), strict=True)
    }
    price = float(generator.uniform(0, 8))
    own = NodeTimes({name: b for name, (_, b) in times.items()}, {name: a for name, (a, _) in times.items()})
    floats = divide(model, placement, own, {}, Price(price, 0.0))
    together = [{"a", "b"}, {"d", "e"}]  # a Relu is integers with what is before it, or not at all

    def allowed(chosen: set[str]) -> bool:
        whole = all(not (group & chosen) or group <= chosen for group in together)
        return whole and ("d" not in chosen or {"b", "c"} <= chosen)

    sets = [set(each) for n in range(len(able) + 1) for each in itertools.combinations(able, n)]
    best = min(cost(chosen, model, placement, times, price) for chosen in sets if allowed(chosen))
    found = set(able) - floats
    assert allowed(found)
    assert cost(found, model, placement, times, price) == pytest.approx(best)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let nodes and models take what a test says."""

    def set_up(slow: str = "", whole: tuple[float, ...] = ()) -> None:
        def times(form: bytes, _feed: Any, _setting: Setting) -> tuple[NodeTime, ...]:
            nodes = load_model(form).graph
            return tuple(NodeTime(str(node.name), node.op_type, takes(node, slow)) for node in nodes)

        def take_turns(calls: list[Any], _seconds: float) -> Any:
            row = np.array([*whole, *[9.0] * len(calls)][: len(calls)])
            return np.repeat(np.broadcast_to(row, (2, len(calls)))[:, :, None], 3, 2)

        monkeypatch.setattr(latencies, "node_times", times)
        monkeypatch.setattr(latencies, "take_turns", take_turns)

    return set_up


def takes(node: ir.Node, slow: str) -> float:
    """10 in float, 5 between codes, 100 between codes for the one that is slow."""
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    coded = source is not None and source.op_type == "DequantizeLinear"
    if node.op_type in ("Conv", "Add", "Sigmoid"):
        return (100.0 if slow and node.name == slow else 5.0) if coded else 10.0
    return 0.1


def test_what_is_slow_in_integers_stays_float(pretend: Callable[..., None]) -> None:
    pretend(slow="ptq0", whole=(9.0, 8.0, 5.0))
    result = quantize(net(), feeds(16, 3, 8, 8), LATENCY)
    report = result.report
    assert [(rule["match"], rule["float_kernel"]) for rule in report.recipe["layers"]] == [("a", True)]
    assert report.left_float["a"] == "left to a float kernel by 'a'"
    assert report.recipe["optimize"] == "integers"
    assert {row.name for row in report.layers} == {"c", "f"}
    assert [plan.name for plan in report.plans][:3] == ["float", "all integers", "1 layers in float"]
    recipe = replace(LATENCY, optimize="integers", layers=(LayerRule("a", float_kernel=True),))
    again = quantize(net(), feeds(16, 3, 8, 8), recipe)
    assert again.delivery.data == result.delivery.data
    assert again.report.card_json() == report.card_json()  # nothing of a clock in the card


def test_of_equally_fast_plans_the_one_with_most_integers(pretend: Callable[..., None]) -> None:
    pretend(slow="ptq0", whole=(9.0, 5.0, 4.96))
    assert len(quantize(net(), feeds(16, 3, 8, 8), LATENCY).report.layers) == 3


def test_where_float_is_fastest_only_weights_become_integers(pretend: Callable[..., None]) -> None:
    pretend(whole=(4.0, 5.0, 6.0))
    report = quantize(net(), feeds(16, 3, 8, 8), LATENCY).report
    assert report.recipe["weight_only"] is True
    assert report.num_grids == 0


def test_measured_for_real() -> None:
    result = quantize(net(), feeds(16, 3, 8, 8), replace(LATENCY, latency_batch=4))
    assert result.report.plans[0].name == "float"
    assert all(plan.milliseconds > 0 for plan in result.report.plans)
    assert result.report.proof.latency.batch == 4


def test_nodes_are_timed_by_name() -> None:
    model = net()
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    found = node_times(ir.to_proto(model).SerializeToString(), feeds(1, 3, 8, 8)[0], Setting(budget_seconds=0.05))
    assert sum(node.op_type == "Conv" for node in found) == 3
    assert all(node.microseconds >= 0 for node in found)


def test_what_cannot_be_optimized_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="weight-only"):
        quantize(net(), feeds(16, 3, 8, 8), replace(LATENCY, weight_only=True))
    with pytest.raises(RecipeError, match="more than once"):
        quantize(net(), iter(feeds(16, 3, 8, 8)), LATENCY)
    fixed = net()
    fixed.graph.inputs[0].shape = ir.Shape([1, 3, 8, 8])
    with pytest.raises(RecipeError, match="latency_batch is 4"):
        quantize(fixed, feeds(16, 3, 8, 8), replace(LATENCY, latency_batch=4))
    with pytest.raises(RecipeError, match="latency_batch is 0"):
        Recipe(latency_batch=0)
    ir.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(16, 3, 8, 8)]))
    given = ["quantize", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "q.onnx")]
    result = CliRunner().invoke(main, [*given, "--optimize", "latency"])
    assert result.exit_code == 0
    assert "tried" in result.output
