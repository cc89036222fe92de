"""`ptq inspect` without data: a size that the model takes is found, or it is said in one line which input needs one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq.core.errors import InputError
from ptq.inspection import cost, inspect_model
from ptq.inspection.sizes import fitting_sample
from ptq.passes import check_equivalence, prepare
from tests.builders import conv_net, feeds, model_from_text, random

CONV = "a = Conv <pads = [1, 1, 1, 1]> (x, w)"
FLAT = f"{CONV} f = Flatten (a) y = Gemm (f, v)"
NETS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, list[int]]]] = {
    "any size": (f"net (float[N, 3, H, W] x) => (float y) {{ {CONV} y = Relu (a) }}", {}, {"x": [1, 3, 224, 224]}),
    "32 x 32 alone": (f"net (float[N, 3, H, W] x) => (float y) {{ {FLAT} }}", {"v": (4096, 5)}, {"x": [1, 3, 32, 32]}),
    "28 x 28, channels open too": (
        f"net (float[N, C, H, W] x) => (float y) {{ {FLAT} }}", {"v": (3136, 5)}, {"x": [1, 3, 28, 28]},
    ),
    "features": ("net (float[N, F] x) => (float y) { y = MatMul (x, v) }", {"v": (80, 5)}, {"x": [1, 80]}),
    "one length twice the other": (
        "net (float[N, S] x, float[N, T] z) => (float y) {"
        " d = Concat <axis = 1> (x, x) s = Concat <axis = 0> (d, z) y = Relu (s) }",
        {}, {"x": [1, 16], "z": [1, 32]},
    ),
}  # fmt: skip


def net(name: str) -> ir.Model:
    text, shapes, _ = NETS[name]
    weights = {key: random(shape, 2) for key, shape in shapes.items()}
    return model_from_text(text, weights | ({"w": random((4, 3, 3, 3), 1)} if "Conv" in text else {}))


@pytest.mark.parametrize("name", NETS)
def test_a_size_that_fits_is_found(name: str) -> None:
    assert {key: list(array.shape) for key, array in fitting_sample(net(name)).items()} == NETS[name][2]


def test_inspection_says_what_it_took() -> None:
    assert inspect_model(net("32 x 32 alone"))["sample"] == {"x": [1, 3, 32, 32]}


def test_where_none_fits_the_input_is_named() -> None:
    model = model_from_text("net (float[N, F] x) => (float y) { y = MatMul (x, v) }", {"v": random((77, 5))})
    with pytest.raises(InputError, match=r"no likely size fits the open extents of x: float32 \[N, F\]; give a sample"):
        inspect_model(model)


def test_nothing_is_run_to_prove_what_is_not_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    (feed,) = feeds(1, 3, 16, 16)
    wanted = [node.op_type for node in prepare(conv_net(), feed)[0].graph]
    monkeypatch.setattr(check_equivalence, "float_outputs", fail)
    assert [node.op_type for node in prepare(conv_net(), feed, proven=False)[0].graph] == wanted


@pytest.mark.parametrize(("long", "times"), [(0.0, 1), (60.0, 2)])
def test_a_long_run_is_timed_once(monkeypatch: pytest.MonkeyPatch, long: float, times: int) -> None:
    seen = []
    monkeypatch.setattr(cost, "run", lambda *_: seen.append(1))
    monkeypatch.setattr(cost, "LONG_SECONDS", long)
    cost.run_seconds(conv_net(), {"x": np.zeros((1, 3, 16, 16), np.float32)})
    assert len(seen) == times
