"""A Squeeze and the Unsqueeze behind it: what one node can stand for."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from ptq.passes.check_equivalence import float_outputs
from ptq.passes.join_squeezes import JoinSqueezes
from tests.builders import model_from_text, random


def left(extents: str, drop: list[int], insert: list[int], more: str = "") -> Counter[str]:
    """Operators that are left; outputs are as before, with their shapes."""
    text = f"""net (float[{extents}] x) => (float[] y{", float[] z" if more else ""}) {{
        a = Neg (x)  s = Squeeze (a, drop)  u = Unsqueeze (s, insert)  y = Relu (u)  {more}
    }}""".replace("float[]", "float")
    model = model_from_text(text, {"drop": np.array(drop), "insert": np.array(insert)})
    for value in model.graph.outputs:
        value.shape = None
    shape = tuple(3 if extent == "N" else int(extent) for extent in extents.split(", "))
    feed = {"x": random(shape, 1)}
    before, after = float_outputs(model, feed), JoinSqueezes()(model.clone()).model
    for name, value in float_outputs(after, feed).items():
        np.testing.assert_array_equal(value, before[name])
    return Counter(node.op_type for node in after.graph if node.op_type not in ("Neg", "Relu"))


@pytest.mark.parametrize(
    ("extents", "drop", "insert", "operators"),
    [
        ("1, 1, 8, 1", [1, 3], [0], {"Squeeze": 1}),
        ("1, 1, 8, 1", [-1], [-1], {}),
        ("N, 1, 8", [1], [1], {}),
        ("N, 1, 8", [1], [1, 3], {"Unsqueeze": 1}),
        ("N, 1, 8, 1", [1, 3], [2], {"Squeeze": 1}),
        ("N, 1, 8", [1], [2], {"Squeeze": 1, "Unsqueeze": 1}),  # from one place to another
        ("1, 1, 4", [0, 1], [0, 0 + 1, 2], {"Unsqueeze": 1}),
    ],
)
def test_pairs_become_what_one_node_can_stand_for(
    extents: str, drop: list[int], insert: list[int], operators: dict[str, int]
) -> None:
    assert left(extents, drop, insert) == operators


def test_every_pair_on_four_axes_keeps_its_shape() -> None:
    for shape in itertools.product((1, 2), repeat=4):
        ones = [axis for axis in range(4) if shape[axis] == 1]
        for count in range(1, len(ones) + 1):
            for insert in ([0], [1], [0, 1], [-1]):
                if max(insert) < 4 - count + len(insert):
                    left(", ".join(map(str, shape)), ones[:count], insert)


def test_a_squeeze_that_others_read_stays_for_them() -> None:
    assert left("N, 1, 8", [1], [1], "z = Tanh (s)") == {"Squeeze": 1, "Tanh": 1}


def test_axes_that_are_computed_stay() -> None:
    text = """net (float[N, 1, 8] x, int64[1] axis) => (float y) {
        s = Squeeze (x, axis)  u = Unsqueeze (s, axis)  y = Relu (u) }"""
    assert not JoinSqueezes()(model_from_text(text, {})).modified
