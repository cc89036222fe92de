"""Bodies of If, Loop and Scan: what they read stays, what nothing reads goes, their tables lie on codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Recipe, quantize
from ptq.calibration.observers import Dynamic
from ptq.cli import main
from ptq.models.sessions import run, session_of
from ptq.passes import prepare
from ptq.passes.infer_shapes import section
from ptq.passes.lifting import weights_of
from ptq.passes.unused import RemoveUnused
from tests.builders import feeds, model_from_text, random


def decoder(*, own: bool) -> ir.Model:
    """A merged decoder: both branches pick rows of a table, one of the graph around them or one of their own each."""
    text = """
    net (int64[1, S] ids, bool use, float[1, S, 32] past) => (float[1, S, 32] y) {
        y = If (use) <
            then_branch = yes () => (float[1, S, 32] a) {
                e = Gather (table, ids)  p = Add (e, past)  a = MatMul (p, w)
            },
            else_branch = no () => (float[1, S, 32] b) { e = Gather (table, ids)  b = MatMul (e, w) }
        >
    }"""
    weights = {"table": random((200, 32), 1, 1.0), "w": random((32, 32), 2, 0.2)}
    proto = ir.to_proto(model_from_text(text, weights))
    if own:
        table = next(tensor for tensor in proto.graph.initializer if tensor.name == "table")
        for number, attribute in enumerate(proto.graph.node[0].attribute):
            inner = attribute.g.initializer.add()
            inner.CopyFrom(table)
            inner.raw_data = (random((200, 32), 3 + number, 1.0)).tobytes()
        proto.graph.initializer.remove(table)
    return ir.from_proto(proto)


def texts(count: int = 16) -> list[dict[str, Any]]:
    random_ = np.random.default_rng(0)
    return [
        {
            "ids": random_.integers(0, 200, (1, 6)),
            "use": np.array(bool(number % 2)),
            "past": random_.standard_normal((1, 6, 32)).astype(np.float32),
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True), Recipe(activations=Dynamic())])
def test_tables_inside_branches_lie_on_codes(recipe: Recipe, own: bool) -> None:
    model = decoder(own=own)
    result = quantize(model, texts(), recipe)
    lowered = result.delivery.model
    assert not [
        v for v in lowered.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and v.const_value.size > 999
    ]  # type: ignore[union-attr]
    assert {
        str(value.dtype) for node in lowered.graph.all_nodes() if node.op_type == "Gather" for value in node.inputs[:1]
    } == {"INT8", "FLOAT16"}  # type: ignore[union-attr]
    assert sum(weight.shape == (200, 32) for weight in weights_of(lowered).values()) == (2 if own else 1)
    assert result.report.proof.comparison.sqnr_db > 30
    assert result.delivery.num_bytes < 0.5 * len(ir.to_proto(model).SerializeToString())


def test_a_table_read_outside_and_inside_is_stored_once() -> None:
    text = """
    net (int64[1, S] ids, bool use) => (float[1, S, 32] y) {
        o = Gather (table, ids)
        i = If (use) <
            then_branch = yes () => (float[1, S, 32] a) { e = Gather (table, ids)  a = Neg (e) },
            else_branch = no () => (float[1, S, 32] b) { b = Gather (table, ids) }
        >
        s = Add (o, i)
        y = MatMul (s, w)
    }"""
    model = model_from_text(text, {"table": random((200, 32), 1, 1.0), "w": random((32, 32), 2, 0.2)})
    samples = [{name: sample[name] for name in ("ids", "use")} for sample in texts()]
    result = quantize(model, samples, Recipe(weight_only=True))
    tables = [v for v in result.delivery.model.graph.initializers.values() if v.shape is not None and v.shape[0] == 200]
    assert sorted(str(value.dtype) for value in tables) == ["FLOAT16", "INT8"]
    assert result.report.proof.comparison.sqnr_db > 30


def gated() -> ir.Model:
    """Two convolutions, and behind them an If whose branches read an input that nothing else reads."""
    text = """
    net (float[1, 4, 6, 6] x, float[1, 4, 6, 6] state) => (float[1, 4, 6, 6] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w0)
        r = Relu (c)
        d = Conv <pads = [1, 1, 1, 1]> (r, w1)
        mean = ReduceMean <keepdims = 0> (d)
        positive = Greater (mean, zero)
        t = Tanh (d)
        kept = Neg (state)
        y = If (positive) <
            then_branch = yes () => (float[1, 4, 6, 6] a) { a = Add (t, kept) },
            else_branch = no () => (float[1, 4, 6, 6] b) { b = Sub (t, kept) }
        >
    }"""
    first = random((4, 4, 3, 3), 1)
    first[0] *= 30
    return model_from_text(text, {"w0": first, "w1": random((4, 4, 3, 3), 2), "zero": np.array(0, np.float32)})


def test_a_section_leaves_out_branches_and_what_only_they_read() -> None:
    model, _ = prepare(gated(), feeds(1, 4, 6, 6)[0] | {"state": random((1, 4, 6, 6))})
    part = section(model, "r", ["d"])
    assert [node.op_type for node in part.graph] == ["Conv"]
    assert {str(value.name) for value in (*part.graph.inputs, *part.graph.initializers.values())} == {"r", "w1"}
    with session_of(part) as session:
        (d,) = run(session, {"r": random((1, 4, 6, 6))}, ["d"])
    assert d.shape == (1, 4, 6, 6)


def test_values_that_only_branches_read_do_not_stop_the_run() -> None:
    samples = [x | {"state": random((1, 4, 6, 6), number)} for number, x in enumerate(feeds(16, 4, 6, 6))]
    result = quantize(gated(), samples)
    assert result.report.proof.comparison.sqnr_db > 15


def test_dead_nodes_constants_and_doc_strings_of_bodies_go() -> None:
    model = decoder(own=True)
    body = model.graph[0].attributes["then_branch"].as_graph()
    dead = ir.Value(name="dead", shape=ir.Shape((4096,)), type=ir.TensorType(ir.DataType.FLOAT))
    dead.const_value = ir.tensor(np.ones(4096, np.float32), name="dead")
    body.register_initializer(dead)
    model.graph[0].attributes["else_branch"].as_graph()[0].doc_string = "a stack trace " * 99
    prepared, _ = prepare(model, texts(1)[0])
    assert "dead" not in ir.to_proto(prepared).SerializeToString().decode("latin1")
    assert "stack trace" not in ir.to_proto(prepared).SerializeToString().decode("latin1")
    again = RemoveUnused()(prepared)
    assert not again.modified


def test_models_without_layers_in_the_main_graph_are_inspected(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(decoder(own=False), path)
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "1 If" in shown.output
