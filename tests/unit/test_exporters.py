"""Folders for other machines: what is in them, and that nothing half-made is left. `make edge` runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import ptq
from ptq.cli import main
from ptq.core.errors import InputError, RecipeError, UnsupportedModelError
from ptq.exporters import EXPORTERS
from tests.builders import conv_net, feeds, model_from_text, random

FILES = {
    "ort-mobile": {"model.ort", "required_operators_and_types.config", "run.py", "inputs.npz", "expected.npz"},
    "web": {"model.onnx", "float.onnx", "index.html", "page.mjs", "model.mjs", "check.mjs", "package.json"},
    "arm64": {"model.onnx", "run.py", "inputs.npz", "expected.npz"},
    "native": {"model.onnx", "run.py", "main.c", "model.h", "Makefile", "input_0.bin", "expected_0.bin"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    ptq.quantize(conv_net(), feeds(16, 3, 16, 16)).save(folder / "q.onnx")
    ir.save(conv_net(), folder / "float.onnx")
    return folder / "q.onnx"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the converter leaves a file open
@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_everything_is_there_and_checks_itself(
    target: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptq.exporters.arm64.COMPILER", "no-compiler")  # `make edge` cross compiles
    data = np.concatenate([feed["x"] for feed in feeds(20, 3, 16, 16)])
    folder = tmp_path / "out"
    for _ in range(2):  # the second time replaces the first
        paths = ptq.export(model, folder, target=target, data=data, float_model=model.with_name("float.onnx"))
    assert FILES[target] <= {path.name for path in paths}
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths} | {"ptq-export.json"}
    assert json.loads((folder / "ptq-export.json").read_text())["target"] == target
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert str(tmp_path) not in "".join(p.read_text() for p in paths if p.suffix in (".config", ".h", ".json"))
    if "run.py" in FILES[target]:
        done = subprocess.run([sys.executable, folder / "run.py"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("y: largest value")
        np.savez(folder / "expected.npz", y=np.full((1, 5), 1e3, np.float32))
        assert subprocess.run([sys.executable, folder / "run.py"], check=False, capture_output=True).returncode == 1
    if target == "web":
        assert len(json.loads((folder / "samples.json").read_text())["samples"]) == 12


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the converter leaves a file open
@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_a_model_that_draws_is_checked_with_fixed_draws_and_exported_as_it_is(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ptq.exporters.arm64.COMPILER", "no-compiler")
    text = """net (float[N, 8] x) => (float y, float low) {
        n = RandomNormalLike (x)  a = Add (x, n)  y = MatMul (a, w)  low = Log (zero) }"""
    path, folder = tmp_path / "m.onnx", tmp_path / "out"
    ir.save(model_from_text(text, {"w": random((8, 8), 1), "zero": np.zeros(2, np.float32)}), path)
    ptq.export(path, folder, target=target, data=random((4, 8), 2), float_model=path)
    names = {each.name for each in folder.iterdir()}
    assert {each for each in names if each.startswith("check.")} - {"check.mjs"} == {
        "check.ort" if target == "ort-mobile" else "check.onnx"
    }
    if target == "web":
        assert json.loads((folder / "samples.json").read_text())["model"] == "check.onnx"
        assert "RandomNormalLike" not in {node.op_type for node in ir.load(folder / "float.onnx").graph}
    if target == "native":
        assert '#define CHECKED "check.onnx"' in (folder / "model.h").read_text()
    if "run.py" in names:
        done = subprocess.run([sys.executable, folder / "run.py"], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("low: largest value 0, largest difference 0\n")
    assert "onnxruntime:" not in capfd.readouterr().err  # the shape that the model declares for y is none of ours
    if target != "ort-mobile":
        assert (folder / "model.onnx").read_bytes() == path.read_bytes()


def test_what_stands_in_the_way_stays(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name, word in (("full", "other files"), ("file", "a file"), ("link", "a link"), ("no/such", "no such folder")):
        with pytest.raises(InputError, match=word):
            ptq.export(model, tmp_path / name, target="web")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    ptq.export(model, tmp_path / "again", target="native")
    (tmp_path / "again" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt"):
        ptq.export(model, tmp_path / "again", target="native")
    assert (tmp_path / "again" / "mine.txt").read_text() == "mine"
    with pytest.raises(RecipeError, match="expected one of"):
        ptq.export(model, tmp_path / "new", target="toaster")
    assert not (tmp_path / "new").exists()


def test_a_page_takes_truths(tmp_path: Path) -> None:
    ir.save(model_from_text("m (bool[2] x) => (bool[2] y) { y = Not (x) }", {}), tmp_path / "m.onnx")
    ptq.export(tmp_path / "m.onnx", tmp_path / "out", target="web", data={"x": np.array([[True, False]])})
    sample = json.loads((tmp_path / "out/samples.json").read_text())["samples"][0]
    assert (sample["inputs"]["x"]["type"], sample["expected"]["data"]) == ("bool", "AAE=")


def test_what_a_target_cannot_take_is_said(tmp_path: Path) -> None:
    text = "m (double[2] x) => (double[2] y) { y = Neg (x) }"
    ir.save(model_from_text(text, {}), tmp_path / "double.onnx")
    with pytest.raises(UnsupportedModelError, match=r"float64.* or export for arm64"):
        ptq.export(tmp_path / "double.onnx", tmp_path / "out", target="web")
    big = conv_net()
    ir.save(big, tmp_path / "beside.onnx", external_data="beside.onnx.data")
    for target in ("web", "ort-mobile"):
        with pytest.raises(UnsupportedModelError, match="beside"):
            ptq.export(tmp_path / "beside.onnx", tmp_path / "out", target=target)
    ptq.export(tmp_path / "beside.onnx", tmp_path / "out", target="native")
    assert (tmp_path / "out" / "beside.onnx.data").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.onnx", "beside.onnx.data", "double.onnx", "out"]


def test_a_folder_that_cannot_be_swapped_stays(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ptq.export(model, tmp_path / "out", target="native")
    before = (tmp_path / "out" / "model.h").stat().st_mtime_ns
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "made":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match="No space left"):
        ptq.export(model, tmp_path / "out", target="native")
    assert (tmp_path / "out" / "model.h").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_inputs_may_have_any_name(tmp_path: Path) -> None:
    text = "m (float[2] file) => (float[2] allow_pickle) { allow_pickle = Neg (file) }"
    ir.save(model_from_text(text, {}), tmp_path / "m.onnx")
    ptq.export(tmp_path / "m.onnx", tmp_path / "out", target="native")
    subprocess.run([sys.executable, tmp_path / "out" / "run.py"], check=True, capture_output=True)


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(main, ["export", *map(str, arguments)])

    good = run(model, "--target", "native", "-o", tmp_path / "out")
    assert good.exit_code == 0
    assert "main.c" in good.output
    bad = run(model, "--target", "native", "-o", tmp_path)
    assert bad.exit_code == 2
    assert bad.output.count("\n") == 1
    assert run(tmp_path / "none.onnx", "--target", "web", "-o", tmp_path / "new").exit_code == 2


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake")
def test_a_cross_compiler_that_fails_is_said_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "bin" / "aarch64-linux-gnu-g++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    done = CliRunner().invoke(main, ["export", str(model), "--target", "arm64", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.output.startswith("error: aarch64-linux-gnu-g++ cannot build the operator library: ")
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()
