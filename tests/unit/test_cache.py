"""A build in which nothing changed is done at once; one in which anything changed is not."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import ptq.api
import ptq.delivery.cache
from ptq.cli import main
from tests.builders import feeds, model_from_text, random


def write_model(path: Path, seed: int = 1, *, beside: bool = False) -> None:
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 6] y) {
        a = Conv (x, w, b)
        g = GlobalAveragePool (a)
        y = Flatten (g)
    }"""
    model = model_from_text(text, {"w": random((6, 3, 3, 3), seed), "b": random((6,), 2)})
    ir.save(model, path, external_data="weights.bin" if beside else None, size_threshold_bytes=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(16, 3, 8, 8)]))
    return tmp_path


def run(folder: Path, *more: str, output: str = "q.onnx") -> tuple[int, str]:
    given = ["quantize", str(folder / "m.onnx"), "--data", str(folder / "d.npz"), "-o", str(folder / output)]
    result = CliRunner().invoke(main, [*given, "--cache", str(folder / "cache"), *more])
    return result.exit_code, result.output


def was_repeated(folder: Path, *more: str, output: str = "q.onnx") -> bool:
    code, text = run(folder, *more, output=output)
    assert code == 0, text
    return "unchanged" in text


def products(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("q.onnx")}


def test_the_second_build_is_the_first_again_without_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_repeated(folder)
    first = products(folder)
    monkeypatch.setattr(ptq.api, "quantize", None)
    os.utime(folder / "q.onnx", (1, 1))
    assert was_repeated(folder)
    assert (folder / "q.onnx").stat().st_mtime > 1  # or make would build it again and again
    (folder / "q.onnx").write_bytes(b"something else")
    (folder / "q.onnx.card.md").unlink()
    assert was_repeated(folder)
    assert products(folder) == first
    code, text = run(folder, "--json")
    assert code == 0
    assert json.loads(text)["quantized_model"]["name"] == "q.onnx"
    assert "bench" in json.loads(text)
    assert run(folder, "--quiet") == (0, "")


def test_whatever_changes_makes_a_new_run(folder: Path) -> None:
    assert not was_repeated(folder)
    assert not was_repeated(folder, "--bits", "7")
    assert not was_repeated(folder, "--samples", "8")
    assert not was_repeated(folder, output="q2.onnx")
    (folder / "r.toml").write_text("seed = 1")
    recipe = ("--recipe", str(folder / "r.toml"))
    assert not was_repeated(folder, *recipe)
    assert was_repeated(folder, *recipe)
    (folder / "r.toml").write_text("")
    assert not was_repeated(folder, *recipe)
    np.savez(folder / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(17, 3, 8, 8)]))
    assert not was_repeated(folder)
    write_model(folder / "m.onnx", 2)
    assert not was_repeated(folder)
    assert was_repeated(folder)


def test_other_sources_or_libraries_make_a_new_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_repeated(folder)
    monkeypatch.setattr(ptq.delivery.cache, "version", lambda name: f"{name} 0")
    assert not was_repeated(folder)
    monkeypatch.undo()
    monkeypatch.setattr(ptq.delivery.cache, "_sources", lambda: [folder])
    assert not was_repeated(folder)


@pytest.mark.parametrize(
    "name", ["core.affine", "solving.plan", "weights.gptq", "passes.linear", "calibration.collect", "api"]
)
def test_every_module_counts_as_a_source(name: str) -> None:
    path = Path(import_module(f"ptq.{name}").__file__ or "").resolve()
    sources = {source.resolve() for folder in ptq.delivery.cache._sources() for source in folder.rglob("*.py")}
    assert path in sources


def test_weights_beside_the_model_count(folder: Path) -> None:
    write_model(folder / "m.onnx", 1, beside=True)
    assert not was_repeated(folder)
    assert was_repeated(folder)
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[0] ^= 1
    (folder / "weights.bin").write_bytes(weights)
    assert not was_repeated(folder)


def test_damaged_entries_are_made_again(folder: Path) -> None:
    assert not was_repeated(folder)
    (entry,) = (folder / "cache").iterdir()
    data = entry.read_bytes()
    for damaged in (data[:100], b"", data[:-1] + bytes([data[-1] ^ 1])):
        entry.write_bytes(damaged)
        assert not was_repeated(folder)
    assert was_repeated(folder)


def test_missed_goals_are_not_kept(folder: Path) -> None:
    assert run(folder, "--min-sqnr-db", "200")[0] == 1
    assert run(folder, "--min-sqnr-db", "200")[0] == 1
    assert not list((folder / "cache").iterdir())


def test_the_oldest_entries_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_repeated(folder)
    (first,) = (folder / "cache").iterdir()
    os.utime(first, (1, 1))
    monkeypatch.setattr(ptq.delivery.cache, "MOST_BYTES", first.stat().st_size * 3 // 2)
    assert not was_repeated(folder, "--bits", "7")
    assert not first.exists()
    assert len(list((folder / "cache").iterdir())) == 1


def test_what_cannot_be_known_or_written_is_refused(folder: Path) -> None:
    code, text = run(folder, "--metric", "os:getcwd")
    assert (code, "--metric" in text) == (2, True)
    (folder / "file").write_text("")
    code, text = run(folder, "--cache", str(folder / "file" / "x"))
    assert (code, len(text.splitlines())) == (2, 1)
    code, text = run(folder, "--eval-data", str(folder / "none.npz"))
    assert (code, "none.npz" in text) == (2, True)
