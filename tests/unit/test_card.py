"""The card: complete, valid, reproducible, and free of clocks and hosts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest

import ptq
from ptq.analysis import report
from tests.builders import attention, conv_net, feeds

SCHEMA = json.loads((Path(report.__file__).parent / "card.schema.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    ir.save(conv_net(), folder / "m.onnx")
    np.savez(folder / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(20, 3, 16, 16)]))
    return folder


def test_card_validates_and_its_hashes_are_those_of_the_files(folder: Path) -> None:
    ptq.quantize(folder / "m.onnx", folder / "d.npz").save(folder / "q.onnx")
    card = json.loads((folder / "q.onnx.card.json").read_text())
    jsonschema.validate(card, SCHEMA)
    for key, name in (("float_model", "m.onnx"), ("quantized_model", "q.onnx")):
        data = (folder / name).read_bytes()
        assert card[key] == card[key] | {
            "name": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "num_bytes": len(data),
        }
    assert (card["data"]["num_calibration"], card["data"]["num_verification"]) == (18, 2)
    assert card["data"]["held_out"] is True
    text = (folder / "q.onnx.card.md").read_text()
    assert all(row["name"] in text for row in card["layers"])
    assert "**Verdict: holds; no goal was set; SQNR" in text
    bench = json.loads((folder / "q.onnx.bench.json").read_text())
    assert bench["latency"]["threads"] == 1


def test_a_broken_card_does_not_validate() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": "ptq.card/1"}, SCHEMA)


def test_bytes_depend_on_the_inputs_alone(folder: Path) -> None:
    environments = {"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    names = []
    for index, extra in enumerate(environments):
        out = folder / f"r{index}"
        out.mkdir()
        command = [sys.executable, "-m", "ptq", "quantize", str(folder / "m.onnx"), "--data", str(folder / "d.npz")]
        subprocess.run([*command, "-q", "-o", str(out / "q.onnx")], env={**os.environ, **extra}, check=True)
        names.append(out)
    for suffix in ("", ".card.json", ".card.md"):
        assert len({(name / f"q.onnx{suffix}").read_bytes() for name in names}) == 1


def test_metadata_of_the_model_is_kept_and_ours_added() -> None:
    model = attention()
    model.metadata_props["owner"] = "somebody"
    result = ptq.quantize(model, feeds(16, 7, 16))
    assert result.delivery.model.metadata_props["owner"] == "somebody"
    assert "ptq.float_sha256" in result.delivery.model.metadata_props


def test_tiny_sets_are_verified_on_themselves_and_the_card_says_so() -> None:
    data = ptq.quantize(conv_net(), feeds(3, 3, 16, 16)).report.data
    assert (data.num_calibration, data.num_verification, data.held_out) == (3, 3, False)
