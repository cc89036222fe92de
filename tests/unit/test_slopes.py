"""Slopes per channel as convolutions of single channels: which are rewritten, and that nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ptq import Recipe, quantize
from ptq.passes import SlopesAsConvs
from ptq.passes.check_equivalence import float_outputs, require_same
from tests.builders import Arrays, feeds, model_from_text, random

C = 10
WEIGHTS: Arrays = {
    "w": random((C, 3, 3, 3), 0), "v": random((5, C, 1, 1), 1), "each": random((C, 1, 1), 2, 0.8),
    "ranked": random((1, C, 1, 1), 3), "one": np.full((1,), 0.2, np.float32), "place": random((C, 8, 8), 4),
    "row": random((8,), 5), "shape": np.array([0, -1]), "flat": random((C * 64,), 6),
}  # fmt: skip


def operators(body: str) -> Counter[str]:
    """Operators after the pass, which changes no output."""
    text = f"net (float[N, 3, 8, 8] x) => (float y) {{ a = Conv <pads = [1, 1, 1, 1]> (x, w) {body} }}"
    before = model_from_text(text, WEIGHTS)
    after = before.clone()
    for node in after.graph:
        for value in node.outputs:
            value.dtype = before.graph.inputs[0].dtype
    SlopesAsConvs()(after)
    (feed,) = feeds(1, 3, 8, 8)
    require_same("SlopesAsConvs", float_outputs(before, feed), float_outputs(after, feed))
    return Counter(node.op_type for node in after.graph)


@pytest.mark.parametrize("slopes", ["each", "ranked"])
def test_slopes_of_channels_are_convolutions(slopes: str) -> None:
    found = operators(f"p = PRelu (a, {slopes})  y = Conv (p, v)")
    assert found == {"Conv": 4, "Relu": 1, "Add": 1}


def test_one_slope_is_a_leaky_relu() -> None:
    assert operators("y = PRelu (a, one)") == {"Conv": 1, "LeakyRelu": 1}


@pytest.mark.parametrize(
    "body", ["y = PRelu (a, place)", "y = PRelu (a, row)", "f = Reshape (a, shape)  y = PRelu (f, flat)"]
)
def test_other_slopes_stay(body: str) -> None:
    assert operators(body)["PRelu"] == 1


@pytest.mark.parametrize("target", ["cpu-x86", "portable"])
def test_nothing_floats_around_slopes(target: str) -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)  p = PRelu (a, each)  y = Conv (p, v) }"""
    result = quantize(model_from_text(text, WEIGHTS), feeds(24, 3, 8, 8), Recipe(target=target))
    proof = result.report.proof
    assert not proof.kernels.islands
    assert not [node for node in result.delivery.model.graph if node.op_type == "PRelu"]
    assert proof.comparison.sqnr_db > 30
