"""Large weights lie in one array each: not in messages, and not once more for a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq.models import sessions
from ptq.models.lean import SMALL, set_weights_aside, without_weights
from ptq.models.load import load_model
from ptq.models.sessions import run, session_of
from ptq.models.source import external_files
from tests.builders import model_from_text, random

SIDE = 200
TEXT = f"""
net (float[N, {SIDE}] x) => (float[N, {SIDE}] y, float[{SIDE}, {SIDE}] given) {{
    hidden = MatMul (x, weight)
    half = Cast <to = 1> (short)
    y = MatMul (hidden, half)
}}
"""
WEIGHTS = {
    "weight": random((SIDE, SIDE)), "short": random((SIDE, SIDE), 1).astype(np.float16),
    "given": random((SIDE, SIDE), 2), "unused": random((SIDE, SIDE), 3), "small": random((3,), 4),
}  # fmt: skip


def test_a_model_that_is_read_has_its_weights_as_arrays(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(model_from_text(TEXT, WEIGHTS), path)
    for source in (path, path.read_bytes()):
        constants = {name: value.const_value for name, value in load_model(source).graph.initializers.items()}
        assert list(constants) == list(WEIGHTS)
        for name, array in WEIGHTS.items():
            tensor = constants[name]
            assert tensor is not None
            np.testing.assert_array_equal(tensor.numpy(), array)
            assert tensor.numpy().dtype == array.dtype
            assert np.shares_memory(tensor.numpy(), tensor.numpy()) or array.nbytes <= SMALL


def test_what_was_taken_out_of_a_message_is_in_no_copy_of_it() -> None:
    proto = ir.to_proto(model_from_text(TEXT, WEIGHTS))
    whole = proto.ByteSize()
    assert without_weights(proto).ByteSize() < whole / 100
    twice = ir.to_proto(model_from_text(TEXT, WEIGHTS))
    twice.graph.initializer.append(twice.graph.initializer[0])
    assert not set_weights_aside(twice)  # the checker tells which name is taken twice


@pytest.mark.parametrize("optimization", ["all", "none"])
def test_a_session_of_parts_computes_the_same_bits(
    optimization: sessions.Optimization, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, feed, outputs = model_from_text(TEXT, WEIGHTS), {"x": random((3, SIDE), 5)}, []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(sessions, "SMALL_MODEL", limit)
        with session_of(model, optimization=optimization) as session:
            outputs.append(run(session, feed))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(model.graph.initializers) == set(WEIGHTS)


def test_only_files_that_name_others_are_read_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    ir.save(model_from_text(TEXT, WEIGHTS), path, external_data="weights.bin")
    assert external_files(path) == (tmp_path / "weights.bin",)
    path.write_bytes(b"x" * ((1 << 20) - 4) + b"location")  # across two pieces
    loaded = []

    def load(*_: object, **__: object) -> onnx.ModelProto:
        loaded.append(1)
        return onnx.ModelProto()

    monkeypatch.setattr("onnx.load", load)
    external_files(path)
    path.write_bytes(b"x" * (1 << 21))
    external_files(path)
    assert len(loaded) == 1
