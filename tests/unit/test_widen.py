"""float16, double and mixed models: computed in float32, with inputs and outputs as they came."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ptq import quantize
from ptq.passes import prepare
from ptq.runtime import open_session
from tests.builders import model_from_text, random

BODY = """
        net ({kind}[N, 16] x, bool c) => ({kind}[N, 5] y) {{
            a = Gemm (x, w, b)
            r = If (c) <
                then_branch = t () => ({kind}[N, 24] p) {{ p = Relu (a) }},
                else_branch = e () => ({kind}[N, 24] q) {{ q = Add (a, one) }}
            >
            h = Cast <to = {code}> (r)
            y = MatMul (h, v)
        }}"""


def net(kind: str) -> ir.Model:
    dtype, code = {"float16": (np.float16, 10), "double": (np.float64, 11)}[kind]
    weights = {"w": random((16, 24), 1), "b": random((24,), 2), "v": random((24, 5), 3), "one": np.ones(1)}
    return model_from_text(BODY.format(kind=kind, code=code), {n: a.astype(dtype) for n, a in weights.items()})


def samples(kind: str, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    dtype = np.float16 if kind == "float16" else np.float64
    return [{"x": rng.standard_normal((1, 16)).astype(dtype), "c": np.array(i % 2 == 0)} for i in range(count)]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_floats_become_integers_and_keep_their_interface(kind: str) -> None:
    model = net(kind)
    result = quantize(model, samples(kind, 24))
    assert result.report.proof.kernels.num_linear == 2
    assert any("computed in float32" in note for note in result.report.notes)
    session, real = result.session(), open_session(ir.to_proto(model).SerializeToString())
    assert [value.type for value in session.get_inputs()] == [value.type for value in real.get_inputs()]
    for feed in samples(kind, 4):
        (found,), (wanted,) = session.run(None, feed), real.run(None, feed)
        assert found.dtype == wanted.dtype
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_names_that_are_taken_are_left_alone() -> None:
    text = """
    net (float16[N, 4] x) => (float16[N, 3] y) {
        x_float32 = Relu (x)
        y_float32 = MatMul (x_float32, w)
        y = Relu (y_float32)
    }"""
    model = model_from_text(text, {"w": random((4, 3)).astype(np.float16)})
    prepared, _ = prepare(model, {"x": np.ones((1, 4), np.float16)})
    assert [value.name for value in prepared.graph.outputs] == ["y"]
    assert sum(node.op_type == "Relu" for node in prepared.graph) == 2


def test_numbers_beyond_float32_stay_double() -> None:
    model = net("double")
    model.graph.initializers["one"].const_value = ir.tensor(np.full(1, 1e300), name="one")
    prepared, notes = prepare(model, samples("double", 1)[0])
    assert prepared.graph.initializers["one"].dtype == ir.DataType.DOUBLE
    assert not notes
