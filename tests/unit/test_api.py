"""The library's front door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import ptq
from ptq.core.errors import InputError
from ptq.recipe import Weights
from ptq.weights import Rtn
from tests.builders import conv_net, feeds


@pytest.mark.parametrize("form", ["path", "string", "bytes", "proto", "ir"])
def test_every_form_of_a_model_gives_the_same_result(tmp_path: Path, form: str) -> None:
    ir.save(conv_net(), tmp_path / "m.onnx")
    path = tmp_path / "m.onnx"
    source: Any = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "proto": onnx.load(path),
        "ir": ir.load(path),
    }[form]
    result = ptq.quantize(source, feeds(16, 3, 16, 16))
    expected = ptq.quantize(path, feeds(16, 3, 16, 16))
    sample = feeds(1, 3, 16, 16, seed=9)[0]
    np.testing.assert_array_equal(result.session().run(None, sample)[0], expected.session().run(None, sample)[0])


def test_the_callers_model_stays_as_it_is() -> None:
    model = conv_net()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    ptq.quantize(model, feeds(16, 3, 16, 16))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_validate_judges_any_two_models() -> None:
    result = ptq.quantize(conv_net(), feeds(16, 3, 16, 16))
    data = feeds(12, 3, 16, 16, seed=8)
    good = ptq.validate(conv_net(), result.delivery.data, data, goals=ptq.Goals(min_sqnr_db=20))
    assert good.verdict.passed
    assert good.comparison.num_samples == 12
    assert ptq.validate(conv_net(), conv_net(), data).comparison.sqnr_db == 200.0
    for goals in (ptq.Goals(min_sqnr_db=150), ptq.Goals(max_latency_ratio=1e-9)):
        assert not ptq.validate(conv_net(), result.delivery.data, data, goals=goals).verdict.passed


def test_any_order_of_the_calibration_set_gives_the_same_ranges() -> None:
    samples = feeds(16, 3, 16, 16)
    evaluation = feeds(2, 3, 16, 16, seed=8)
    rounding = ptq.Recipe(weights=Weights(Rtn()))
    made = [ptq.quantize(conv_net(), data, rounding, evaluation=evaluation) for data in (samples, samples[::-1])]
    models = [each.delivery.data for each in made]
    assert models[0] == models[1]


def test_save_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ptq.quantize(conv_net(), feeds(16, 3, 16, 16))
    (tmp_path / "q.onnx").write_bytes(b"old")
    original = Path.replace
    calls = []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 1:  # the model's, which comes first
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(InputError, match=r"q\.onnx: No space left"):
        result.save(tmp_path / "q.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]
    assert (tmp_path / "q.onnx").read_bytes() == b"old"


def test_importing_the_runtime_needs_numpy_and_onnxruntime_only() -> None:
    heavy = {"onnx", "onnx_ir", "onnxscript", "click", "rich", "cattrs"}
    code = f"import sys, ptq.runtime; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_public_names_are_exactly_these() -> None:
    verbs = {"bench", "calibrate", "export", "merge", "quantize", "report", "squeeze", "validate"}
    assert set(ptq.__all__) == verbs | {"Goals", "PtqError", "Recipe", "Result"}
    assert all(getattr(ptq, name) is not None for name in ptq.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ptq.nothing
