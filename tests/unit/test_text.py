"""Texts as inputs and outputs of a model: read from arrays of str, handed on, compared as the same or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Recipe, quantize
from ptq.calibration.store import ArrayStore
from ptq.cli import main
from ptq.core.errors import InputError
from ptq.models.load import load_model
from ptq.passes.infer_shapes import count_values
from ptq.recipe import Weights
from ptq.weights import Gptq
from tests.builders import model_from_text, random

COLORS = np.array(["red", "green", "a longer name", "größer"])


def colored() -> ir.Model:
    """Rows of a table picked by a text, numbers beside them, and the text as it came."""
    text = """
    net (string[N, 1] color, float[N, 8] x) => (float[N, 5] y, string[N, 1] name) {
        first = Equal (color, red)
        as_float = Cast <to = 1> (first)
        both = Concat <axis = 1> (x, as_float)
        h = MatMul (both, w0)
        r = Relu (h)
        y = MatMul (r, w1)
        name = Identity (color)
    }"""
    weights: dict[str, Any] = {"w0": random((9, 32), 1), "w1": random((32, 5), 2), "red": np.array(["red"], object)}
    return model_from_text(text, weights, opset=19)


def samples(count: int = 24) -> dict[str, Any]:
    colors = COLORS[np.random.default_rng(0).integers(0, 4, (count, 1))]
    return {"color": colors, "x": random((count, 8), 3, 1.0)}


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(weight_only=True), Recipe(weights=Weights(Gptq(), 6))])
def test_models_that_read_text_are_quantized(recipe: Recipe) -> None:
    data = samples()
    result = quantize(colored(), data, recipe)
    rows = {row.name: row for row in result.report.proof.comparison.outputs}
    assert rows["y"].sqnr_db > 25
    assert rows["name"].sqnr_db == 200
    as_objects = quantize(colored(), {**data, "color": data["color"].astype(object)}, recipe)
    assert as_objects.report.card_json() == result.report.card_json()


def test_text_is_read_from_files_and_exported(tmp_path: Path) -> None:
    ir.save(colored(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **samples())
    model, data, made = (str(tmp_path / name) for name in ("m.onnx", "d.npz", "q.onnx"))
    for arguments in (
        ["quantize", model, "--data", data, "-o", made],
        ["validate", model, made, "--data", data],
        ["bench", model, made, "--data", data, "--seconds", "0"],
        ["export", made, "-o", str(tmp_path / "out"), "--target", "ort-mobile", "--data", data],
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
    check = subprocess.run([sys.executable, tmp_path / "out" / "run.py"], check=True, capture_output=True, text=True)
    assert "name: largest value 1, largest difference 0" in check.stdout


def test_numbers_where_text_is_wanted_are_named() -> None:
    with pytest.raises(InputError, match="color is int64; the model wants text, give an array of str"):
        quantize(colored(), {**samples(), "color": np.zeros((24, 1), np.int64)})


def test_text_waits_on_disk_too() -> None:
    with ArrayStore(0) as store:
        store.put("a", COLORS.astype(object))
        assert store.get("a").dtype == object
        assert store.get("a").tolist() == COLORS.tolist()


CONTAINERS = {"sequence_type": "sequence", "map_type": "map"}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("place", ["input", "output"])
def test_inputs_and_outputs_that_are_no_tensors_are_named(kind: str, place: str) -> None:
    proto = ir.to_proto(model_from_text("net (float[4] x) => (float[4] y) { y = Neg (x) }", {}))
    (value,) = getattr(proto.graph, place)
    holder = getattr(value.type, kind)
    if kind == "map_type":
        holder.key_type = onnx.TensorProto.STRING
    (holder.value_type if kind == "map_type" else holder.elem_type).tensor_type.elem_type = onnx.TensorProto.FLOAT
    for source in (proto, proto.SerializeToString()):
        with pytest.raises(InputError, match=f"{place} '.' is of type {CONTAINERS[kind]}, expected a tensor; "):
            load_model(source)


def test_numbers_in_sequences_are_counted() -> None:
    assert count_values([np.zeros(3), [np.zeros((2, 2))], None]) == 7
    assert count_values(np.zeros((2, 5))) == 10


def test_sequences_inside_are_handed_on() -> None:
    text = """
    net (float[3, 8] x) => (float[3, 4] y) {
        parts = SplitToSequence <axis = 0> (x)
        whole = ConcatFromSequence <axis = 0> (parts)
        y = MatMul (whole, w)
    }"""
    model = model_from_text(text, {"w": random((8, 4))})
    result = quantize(model, [{"x": random((3, 8), number)} for number in range(16)])
    assert result.report.proof.comparison.sqnr_db > 25
