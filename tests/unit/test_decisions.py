"""Models that decide sizes or order: compared with the float model's decisions, in front of them, and by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ptq import Recipe, quantize
from ptq.api import diff, validate
from ptq.calibration.observers import Dynamic
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.decisions import Decisions, decisions_of
from ptq.recipe import Weights
from ptq.weights import Gptq
from tests.builders import feeds, model_from_text, random

HEAD = """
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0)
        r = Relu (c)
        d = Conv <pads = [1, 1, 1, 1]> (r, w1)
        flat = Reshape (d, two)
        scores = Sigmoid (flat)
"""
TAILS = {
    "boxes that are kept": (
        "int64[K, 3] y",
        """boxes = Reshape (d, by4)  one = Reshape (d, by1)  s = ReduceMax <axes = [2], keepdims = 0> (boxes)
        t = Reshape (s, tall)  n = NonMaxSuppression (boxes, t, most, half, half)  y = Identity (n)""",
        Decisions(("y",), ("boxes", "t"), ("y",), (), ("boxes", "t"), ("NonMaxSuppression",)),
    ),
    "rows above a border": (
        "float[K] y",
        """b = Greater (scores, half)  i = NonZero (b)  t = Transpose (i)  y = GatherND (scores, t)""",
        Decisions(("b",), ("scores",), ("y",), ("y",), ("scores",), ("Greater",)),
    ),
    "the largest, in order": (
        "float[1, 9] v, int64[1, 9] i",
        """v, i = TopK <axis = 1> (scores, nine)""",
        Decisions(("i",), ("scores",), ("i",), ("v",), ("v", "scores"), ("TopK",)),
    ),
    "as many of the largest as there are": (
        "float[1, K] y",
        """b = Greater (scores, half)  c1 = Cast <to = 7> (b)  k = ReduceSum <keepdims = 0> (c1)
        k1 = Reshape (k, flatly)  y, i = TopK <axis = 1> (scores, k1)""",
        Decisions(("b", "i"), ("scores",), ("y",), ("y",), ("scores",), ("Greater", "TopK")),
    ),
    "durations": (
        "float[K, 8] y",
        """few = Slice (scores, zeros, sixteen, ones)  long = Mul (few, three)  e = Ceil (long)
        ends = CumSum (e, axis)  s = ReduceSum <keepdims = 0> (e)  n = Cast <to = 7> (s)
        at = Range (nought, n, unit)  f = Cast <to = 1> (at)  g = Unsqueeze (f, ones)  before = Less (g, ends)
        path = Cast <to = 1> (before)  y = MatMul (path, w2)""",
        Decisions(("e",), ("long",), ("y",), ("y",), ("long",), ("Ceil",)),
    ),
    "a branch": (
        "float[1, K] y",
        """m = ReduceMean <keepdims = 0> (flat)  b = Greater (m, nothing)
        y = If (b) < then_branch = yes () => (float[1, K] a) { a = Neg (flat) },
                     else_branch = no () => (float[1, L] e) { e = Slice (flat, zeros, sixteen, ones) } >""",
        Decisions(("b",), ("m",), ("y",), ("y",), ("m",), ("Greater",)),
    ),
    "a branch that gives what decides": (
        "float[1, K] y",
        """m = ReduceMean <keepdims = 1> (flat)  g = Greater (m, nothing)  b = Reshape (g, flatly)
        y = If (b) < then_branch = yes () => (float[1, 1] a) { a = Identity (m) },
                     else_branch = no () => (float[1, L] e) { e = Slice (flat, zeros, sixteen, ones) } >""",
        Decisions(("g",), ("m",), ("y",), ("y",), ("m",), ("Greater",)),
    ),
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    "two": np.array([1, -1]), "by4": np.array([1, -1, 4]), "by1": np.array([1, 1, -1]), "tall": np.array([1, 1, -1]),
    "most": np.array([50]), "half": np.array(0.5, np.float32), "nine": np.array([9]), "flatly": np.array([1]),
    "zeros": np.array([0]), "ones": np.array([1]), "sixteen": np.array([16]), "three": np.array(3, np.float32),
    "axis": np.array(1), "nought": np.array(0), "unit": np.array(1), "nothing": np.array(0, np.float32),
    "w2": random((16, 8), 3),
}  # fmt: skip
RECIPES = {
    "static": Recipe(), "4 bits": Recipe(weights=Weights(bits=4)), "weight-only": Recipe(weight_only=True),
    "dynamic": Recipe(activations=Dynamic()), "walked": Recipe(weights=Weights(Gptq(), 4)),
}  # fmt: skip


def deciding(name: str) -> ir.Model:
    outputs, tail, _ = TAILS[name]
    constants = {key: array for key, array in CONSTANTS.items() if key in tail + HEAD}
    weights = {"w0": random((8, 3, 3, 3), 1), "w1": random((4, 8, 3, 3), 2), **constants}
    return model_from_text(f"net (float[1, 3, 16, 16] x) => ({outputs}) {{ {HEAD} {tail} }}", weights)


def samples(count: int = 16) -> list[dict[str, NDArray[Any]]]:
    return feeds(count, 3, 16, 16)


@pytest.mark.parametrize("name", TAILS)
def test_decisions_are_found_with_what_stands_in_front(name: str) -> None:
    assert decisions_of(deciding(name)) == TAILS[name][2]


def test_what_a_branch_hands_on_keeps_the_name_that_the_graph_has_for_it() -> None:
    tail = TAILS["a branch"][1].replace("e = Slice (flat, zeros, sixteen, ones)", "e = Identity (m)")
    model = model_from_text(
        f"net (float[1, 3, 16, 16] x) => (float[1, K] y) {{ {HEAD} {tail} }}",
        {"w0": random((8, 3, 3, 3), 1), "w1": random((4, 8, 3, 3), 2), **CONSTANTS},
    )
    assert decisions_of(model).fronts == ("m",)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", TAILS)
def test_models_that_decide_are_quantized_and_compared(name: str, recipe: str) -> None:
    model, floor = deciding(name), 10 if "4" in recipe or recipe == "walked" else 25
    result = quantize(model, samples(), RECIPES[recipe])
    comparison, found = result.report.proof.comparison, TAILS[name][2]
    compared = {row.name for row in comparison.outputs}
    assert {*found.computed, *found.fronts} <= compared <= {"v", *found.computed, *found.fronts}
    assert comparison.sqnr_db > floor
    assert any(f"size or order of {', '.join(found.moved)} depends" in note for note in result.report.notes)
    assert any("by itself: as large as" in note for note in result.report.notes)
    assert result.report.card_json() == quantize(model, samples(), RECIPES[recipe]).report.card_json()


@pytest.mark.parametrize("name", TAILS)
def test_models_that_decide_are_validated_and_explained(name: str) -> None:
    model = deciding(name)
    lowered = quantize(model, samples()).delivery.model
    assert validate(model, lowered, samples()).comparison.sqnr_db > 25
    found = diff(model, lowered, samples())
    assert found.layers
    assert found.sqnr_db > 20
    assert any("decisions" in note for note in found.notes)


def test_boxes_that_lie_fixed_are_kept_by_their_scores() -> None:
    text = """
    net (float[1, 3, 8] x) => (int64[K, 3] y) {
        s = MatMul (x, w0)
        y = NonMaxSuppression (anchors, s, most, half, half)
    }"""
    constants = {"w0": random((8, 5)), "anchors": random((1, 5, 4)), "most": np.array([9]), "half": CONSTANTS["half"]}
    found = decisions_of(model_from_text(text, constants))
    assert (found.values, found.fronts) == (("y",), ("s",))


def test_ordinary_models_decide_nothing() -> None:
    text = """
    net (float[N, 3, 16, 16] x, int64[N, S] ids) => (float[N, M] y, float[K, 8] z) {
        c = Conv <strides = [2, 2]> (x, w0)
        s = Shape (c)
        big = Expand (one, s)
        a = Add (c, big)
        where = NonZero (ids)
        t = Transpose (where)
        picked = GatherND (ids, t)
        z = Gather (table, picked)
        best = ArgMax <axis = 1, keepdims = 1> (a)
        y = Flatten (a)
    }"""
    constants = {"w0": random((8, 3, 3, 3)), "one": np.ones((1, 1, 1, 1), np.float32), "table": random((9, 8))}
    assert not decisions_of(model_from_text(text, constants))


@pytest.mark.parametrize("name", ["boxes that are kept", "durations"])
def test_a_model_with_other_names_inside_is_compared_as_it_is(name: str) -> None:
    model = deciding(name)
    other = quantize(model, samples()).delivery.model
    for node in other.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"other_{value.name}"
    comparison = validate(model, other, samples()).comparison
    assert comparison.num_samples == 16
    assert comparison.outputs
    assert any("compared as they are" in note for note in comparison.notes)
    assert diff(model, other, samples(4)).num_samples == 4


def test_a_sum_added_up_otherwise_may_decide_otherwise() -> None:
    model = deciding("rows above a border")
    other = model.clone()
    nudged = other.graph.initializers["half"]
    nudged.const_value = ir.tensor(np.array(0.52, np.float32), name="half")
    feed = samples(1)[0]
    before = float_outputs(model, feed)
    assert float_outputs(other, feed)["y"].shape != before["y"].shape
    require_same("test", before, float_outputs(other, feed, (), before))


def until_nothing() -> ir.Model:
    """A loop that goes on as long as what it computes is positive: nobody can tell it from outside."""
    text = """
    net (float[1, 8] x) => (float[K, 8] y) {
        h = MatMul (x, w0)
        last, y = Loop (most, yes, h) <body = turn (int64 n, bool go, float[1, 8] s)
            => (bool on, float[1, 8] next, float[8] row) {
                next = MatMul (s, w1)
                m = ReduceMean <keepdims = 0> (next)
                on = Greater (m, nothing)
                row = Squeeze (next, zeros)
            }
        >
    }"""
    rotation = np.linalg.qr(random((8, 8), 5))[0].astype(np.float32)
    constants = {"w0": random((8, 8), 1), "w1": rotation, "most": np.array(30), "yes": np.array(True),
                 "nothing": np.array(-0.3, np.float32), "zeros": np.array([0])}  # fmt: skip
    return model_from_text(text, constants)


def test_sizes_that_differ_are_counted_where_decisions_cannot_be_given() -> None:
    other = until_nothing()
    other.graph.initializers["nothing"].const_value = ir.tensor(np.array(-0.2, np.float32), name="nothing")
    comparison = validate(until_nothing(), other, feeds(24, 8)).comparison
    assert "size of y" in {row.name for row in comparison.outputs}
    assert any("inside bodies" in note for note in comparison.notes)
    result = quantize(until_nothing(), feeds(24, 8))
    assert any("inside bodies" in note for note in result.report.notes)


def lengths(outputs: Mapping[str, NDArray[Any]], _labels: NDArray[np.int64] | None) -> float:
    assert outputs["v"].shape == (2, 9)
    return float(np.mean([each.shape[1] for each in outputs["y"]]))


def test_a_metric_gets_outputs_of_different_sizes_one_by_one() -> None:
    tail = TAILS["as many of the largest as there are"][1] + "  v, places = TopK <axis = 1> (scores, nine)"
    constants = {key: array for key, array in CONSTANTS.items() if key in tail + HEAD}
    weights = {"w0": random((8, 3, 3, 3), 1), "w1": random((4, 8, 3, 3), 2), **constants}
    model = model_from_text(
        f"net (float[1, 3, 16, 16] x) => (float[1, K] y, float[1, 9] v) {{ {HEAD} {tail} }}", weights
    )
    result = quantize(model, samples(), metric=("lengths", lengths))
    assert result.report.proof.comparison.accuracies[0].reference > 0
