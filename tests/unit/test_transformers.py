"""Embedding tables, and weights with scales per block of inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq import PtqError, Recipe, quantize
from ptq.core.layer_statistics import LayerStatistics
from ptq.core.problem import LayerProblem
from ptq.core.spec import PerBlock, QuantSpec
from ptq.recipe import Weights
from ptq.runtime import open_session
from ptq.weights import Gpfq, Gptq, Qronos, Rtn
from tests.builders import model_from_text, random


def language_model(inputs: int = 40, opset: int = 17) -> ir.Model:
    """Tokens and their places, a product with bias, one without."""
    text = """
    m (int64[N, S] ids) => (float[N, S, 7] y) {
        words = Gather (table, ids)
        fixed = Gather (places, one)
        x = Add (words, fixed)
        a = MatMul (x, w0)
        b = Add (a, b0)
        r = Relu (b)
        y = MatMul (r, w1)
    }"""
    weights: dict[str, Any] = {
        "table": random((300, inputs), 1), "places": random((200, inputs), 2), "one": np.int64([[3]]),
        "w0": random((inputs, 48), 3), "b0": random((48,), 4), "w1": random((48, 7), 5),
    }  # fmt: skip
    return model_from_text(text, weights, opset)


def tokens(count: int = 48) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"ids": rng.integers(0, 300, (1, 9))} for _ in range(count)]


def sqnr_db(found: Any, real: Any) -> float:
    return float(10 * np.log10(np.square(real).sum() / np.square(found - real).sum()))


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True)], ids=["static", "weight-only"])
def test_tables_lie_on_codes(recipe: Recipe) -> None:
    result = quantize(language_model(), tokens(), recipe)
    model = result.delivery.model
    kept = [v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and v.const_value]
    assert not [tensor for tensor in kept if tensor.shape == (300, 40)]
    assert any("table: 300 rows on 8 bits" in note for note in result.report.notes)
    codes = result.report.storage["codes"]
    assert codes >= 300 * 40
    (real,) = open_session(ir.to_proto(language_model()).SerializeToString()).run(None, tokens(1)[0])
    assert sqnr_db(result.session().run(None, tokens(1)[0])[0], real) > 30


def test_tables_can_stay_float_and_shrink_with_the_weights() -> None:
    left = quantize(language_model(), tokens(), Recipe(exclude=("Gather",)))
    assert not any("table" in note for note in left.report.notes)
    short = quantize(language_model(), tokens(), Recipe(weight_only=True, weights=Weights(method=Gptq(), bits=4)))
    assert any("table: 300 rows on 6 bits" in note for note in short.report.notes)


@pytest.mark.parametrize("method", [Rtn(), Gptq(), Gpfq(), Qronos()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (4, True), (3, False), (8, True)])
def test_blocks_have_scales_of_their_own(method: Any, bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    weight = random((6, 72), 2) * np.repeat([1.0, 30.0, 0.1, 5.0, 1.0], 16)[:72].astype(np.float32)
    rows = rng.standard_normal((1, 400, 72)) @ (np.eye(72) + 0.2 * rng.standard_normal((72, 72)))
    spec = QuantSpec(bits, signed=True, symmetric=symmetric, narrow_range=bits == 8, granularity=PerBlock(1, 16))
    statistics = LayerStatistics.of(rows, weight, rows)
    problem = LayerProblem("layer", weight, spec, statistics)
    encoding = method.quantize(problem)
    assert encoding.params.scale.shape == encoding.params.zero_point.shape == (6, 5)
    assert encoding.codes.min() >= spec.qmin
    assert encoding.codes.max() <= spec.qmax
    if symmetric:
        assert not encoding.params.zero_point.any()
    rounded = Rtn().quantize(problem)

    def error(decoded: Any) -> float:
        return float(np.square(rows[0] @ (decoded - weight).T).sum())

    assert error(encoding.decode()) <= error(rounded.decode())


@pytest.mark.parametrize("inputs", [64, 40])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_onnxruntime_runs_blocks_as_its_own_product(bits: int, inputs: int, tmp_path: Any) -> None:
    weights = Weights(method=Gptq(), bits=bits, granularity="block-16")
    result = quantize(language_model(inputs), tokens(), Recipe(weight_only=True, weights=weights))
    assert result.report.proof.kernels.integer == {"MatMulNBits": 2}
    assert not result.report.proof.kernels.fallbacks
    result.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    (real,) = open_session(ir.to_proto(language_model(inputs)).SerializeToString()).run(None, tokens(1)[0])
    found = open_session(tmp_path / "q.onnx").run(None, tokens(1)[0])[0]
    assert sqnr_db(found, real) > {8: 30, 4: 15, 3: 8}[bits]


def test_blocks_where_nothing_takes_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(PtqError, match="needs 21"):  # what older opsets cannot say is not written
        quantize(language_model(), tokens(), Recipe(weight_only=True, weights=Weights(granularity="block-16")))
    with pytest.raises(PtqError, match="weight-only"):
        Recipe(weights=Weights(granularity="block-32"))
    with pytest.raises(PtqError, match="extra_macs"):
        Recipe(weight_only=True, weights=Weights(Gptq(), 4, "block-32", extra_macs=0.1))
