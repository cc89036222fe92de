"""Operator sets that are newer than onnxruntime's integer operators, whichever those are here."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import PtqError, Recipe, quantize
from ptq.calibration.observers import Dynamic
from ptq.core.errors import UnsupportedModelError
from ptq.models.sessions import RunError, session_of
from ptq.passes import LowerOpset, lower_opset
from ptq.passes.lower_opset import newest_quantizable
from ptq.recipe import Weights
from tests.builders import feeds, model_from_text, random
from tests.unit.test_balancing import sqnr_db

WRITTEN = onnx.defs.onnx_opset_version()
PROMISED = 26  # by onnxruntime 1.27, the oldest that is supported
PAIR = """pair (float[N] x, float scale, uint8 zero) => (float[N] y) {
    codes = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (codes, scale, zero)
}"""
NET = """net (float[N, 3, 8, 8] x, bool flag) => (float[N, 6] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = If (flag) <then_branch = yes () => (float[N, 4, 8, 8] s) { s = Celu (a) },
                   else_branch = no () => (float[N, 4, 8, 8] t) { t = Relu (a) }>
    wide = Cast <to = 11> (b)
    c = Cast <to = 1> (wide)
    f = Flatten (c)
    d = MatMul (f, v)
    e = Mod <fmod = 1> (d, thousand)
    r = Relu (e)
    y = MatMul (r, u)
}"""
SHORT, BLOCKS = Weights(bits=4), Weights(bits=4, granularity="block-16")
RECIPES = {
    "static": Recipe(),
    "4 bits": Recipe(weights=SHORT),
    "3 bits": Recipe(weights=Weights(bits=3)),
    "dynamic": Recipe(activations=Dynamic()),
    "blocks": Recipe(weight_only=True, weights=BLOCKS),
    "native": Recipe("native"),
    "native, 4 bits": Recipe("native", Dynamic(), SHORT),
}


def net(opset: int) -> ir.Model:
    """Operators that have changed in the newest sets, one of them in a body."""
    weights = {
        "w": random((4, 3, 3, 3), 1), "v": random((256, 16), 2, 0.1), "u": random((16, 6), 3),
        "thousand": np.array([1000], np.float32),
    }  # fmt: skip
    return model_from_text(NET, weights, opset)


def samples() -> list[dict[str, np.ndarray]]:
    return [{**feed, "flag": np.array(True)} for feed in feeds(16, 3, 8, 8)]


def opens(text: str, opset: int) -> bool:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    try:
        with session_of(model.SerializeToString(), optimization="none"):
            return True
    except RunError:
        return False


@functools.cache
def newest_that_runs() -> int:
    """The newest set that onnxruntime runs float models of, and that can be written here."""
    float_net = "net (float[2, 3] x) => (float[2, 3] y) { y = Celu (x) }"
    return max(opset for opset in range(PROMISED, WRITTEN + 1) if opens(float_net, opset))


def test_what_onnxruntime_can_quantize_is_asked_of_it() -> None:
    newest = newest_quantizable(WRITTEN)
    assert newest == max(opset for opset in range(PROMISED, WRITTEN + 1) if opens(PAIR, opset))
    assert [newest_quantizable(opset) for opset in range(7, newest + 1)] == list(range(7, newest + 1))
    assert newest_quantizable(10**6) == newest  # and asks no million times


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("bound", [None, PROMISED - 1, 21], ids=["as it is", "one below", "21"])
def test_models_of_the_newest_opset_are_quantized(
    bound: int | None, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opset = newest_that_runs()
    if bound is not None:
        monkeypatch.setattr(lower_opset, "_is_quantizable", lambda each: each <= bound)
    expected = newest_quantizable(opset)
    assert expected == (bound or expected)
    result = quantize(net(opset), samples(), recipe)
    result.save(tmp_path / "q.onnx")
    assert onnx.load(tmp_path / "q.onnx").opset_import[0].version == expected
    assert [f"from {opset} to {expected}" in note for note in result.report.notes if "opset" in note] == (
        [True] if expected < opset else []
    )
    convolutions = not (recipe.is_dynamic or recipe.weights.granularity == "block-16")
    assert result.report.proof.kernels.num_linear == 2 + convolutions
    assert not result.report.proof.kernels.fallbacks
    assert sqnr_db(result, net(opset), samples()) > {8: 30, 4: 10, 3: 4}[recipe.weights.bits]


def test_operators_that_older_sets_lack_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_opset, "_is_quantizable", lambda opset: opset <= 22)
    text = "net (float[N, 6] x) => (float[N, 6] y) { n = RMSNormalization (x, g)\n y = MatMul (n, w) }"
    model = model_from_text(text, {"g": np.ones(6, np.float32), "w": random((6, 6))}, 24)
    with pytest.raises(PtqError, match=r"has opset 24; .* up to 22 .*RMSNormalization.*; export .* opset 22 or older$"):
        quantize(model, feeds(16, 6))
    before = ir.to_proto(model)
    with pytest.raises(UnsupportedModelError):
        LowerOpset()(model)
    assert ir.to_proto(model) == before


def test_operators_of_other_domains_and_functions_have_versions_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_opset, "_is_quantizable", lambda opset: opset <= 22)
    text = """<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "local" : 1]>
    net (float[N, 6] x) => (float[N, 4] y) { h = local.twice (x)\n g = com.microsoft.Gelu (h)\n y = MatMul (g, w) }
    <domain: "local", opset_import: ["" : 24]>
    twice (a) => (b) { t = Relu (a)  b = Sum (t, a) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(random((6, 4)), "w"))
    result = quantize(proto, feeds(16, 6))
    assert result.delivery.model.opset_imports[""] == 22
    assert result.report.proof.kernels.num_linear == 1
