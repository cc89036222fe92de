"""Exported models, each really run where it is meant to run, against what onnxruntime gives here.

`make edge` gets the tools (a browser, Node, qemu, a cross compiler) and runs these; PTQ_EDGE names their folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import ptq
from ptq.demo.data import MODEL, load
from ptq.recipe import Weights
from ptq.weights.gptq import Gptq
from tests.builders import native_product
from tests.headers import official_headers
from tests.runtime.test_native import LIBRARY, kernel_of

TOOLS = os.environ.get("PTQ_EDGE")
HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not TOOLS, reason="`make edge` runs these")
FOLDER = Path(TOOLS or ".").resolve()


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=1800,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def largest_difference(text: str) -> float:
    """Of what run.py and main.c print."""
    return float(text.strip().splitlines()[-1].rsplit(" ", 1)[1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: target -> folder of the exported demo model, four-bit weights and operators of our own."""
    folder = tmp_path_factory.mktemp("edge")
    _, calibration, evaluation = load()
    calibration.save(folder / "calibration.npz")
    evaluation.save(folder / "evaluation.npz")
    recipe = ptq.Recipe(target="native", weights=Weights(method=Gptq(), bits=4))
    ptq.quantize(MODEL, folder / "calibration.npz", recipe).save(folder / "digits.onnx")

    def export(target: str) -> Path:
        paths = ptq.export(
            folder / "digits.onnx", folder / target, target=target, data=folder / "evaluation.npz", float_model=MODEL
        )
        assert all(path.exists() for path in paths)
        return folder / target

    return export


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the converter leaves a file open
def test_ort_format(exported: Any) -> None:
    folder = exported("ort-mobile")
    assert largest_difference(run(sys.executable, folder / "run.py")) < 1e-4
    config = (folder / "required_operators_and_types.config").read_text()
    assert "QLinearConv" in config
    assert "ai.ptq" not in config
    arm = run(HERE / "arm64_python.sh", FOLDER / "arm64", folder / "run.py")
    assert largest_difference(arm) < 1e-4


def test_web_in_node_and_browser(exported: Any) -> None:
    folder = exported("web")
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    screenshot = FOLDER / "page.png"
    shutil.copyfile(HERE / "page.mjs", FOLDER / "page.mjs")  # packages are looked for beside the script
    for output in (run("node", "check.mjs", cwd=folder), run("node", FOLDER / "page.mjs", folder, screenshot)):
        found = json.loads(output.strip().splitlines()[-1])
        assert found["samples"] == 12
        assert found["same_decisions"] == 12
        assert found["largest_difference"] < 1e-4
    assert screenshot.stat().st_size > 10_000


def test_report_in_a_browser(tmp_path: Path) -> None:
    _, calibration, evaluation = load()
    calibration.save(tmp_path / "calibration.npz")
    evaluation.save(tmp_path / "evaluation.npz")
    command = ["quantize", MODEL, "--data", tmp_path / "calibration.npz", "--eval-data", tmp_path / "evaluation.npz"]
    run(sys.executable, "-m", "ptq", *command, "-o", tmp_path / "q.onnx", "--report", tmp_path / "q.html")
    shutil.copyfile(HERE / "report.mjs", FOLDER / "report.mjs")
    found = json.loads(run("node", FOLDER / "report.mjs", tmp_path / "q.html", FOLDER))
    down, up = found.pop("sorted")  # the first press turns the order that the page begins with
    assert found == {"violations": [], "overflow": 0, "requests": [], "errors": []}
    assert down == sorted(down)[::-1] == up[::-1]
    assert len(up) == 7


def test_arm64(exported: Any, tmp_path: Path) -> None:
    folder, python = exported("arm64"), (HERE / "arm64_python.sh", FOLDER / "arm64")
    library = folder / "_ptqops.so"
    assert largest_difference(run(*python, folder / "run.py")) < 1e-4
    assert largest_difference(run(*python, folder / "run.py", library)) < 0.2  # bytes may differ by one step
    for seed in range(60):
        rng = np.random.default_rng(seed)
        layer = {
            "op_type": ["DynamicMatMulNBits", "QLinearMatMulNBitsToFloat", "QLinearMatMulNBits"][seed % 3],
            "N": int(rng.integers(1, 70)), "K": int(rng.integers(1, 200)), "bits": [2, 4, 8][seed // 3 % 3],
            "block_size": [0, 32][seed // 9 % 2], "table": bool(rng.integers(2)), "clip": (-1.0, 3.0e38),
            "rows": (int(rng.integers(1, 9)),), "seed": seed,
        }  # fmt: skip
        data, x, _ = native_product(layer)
        (tmp_path / f"{seed}.onnx").write_bytes(data)
        np.savez(tmp_path / f"{seed}.npz", x=x, y=kernel_of(data, x))
    assert run(*python, HERE / "products.py", library, tmp_path).startswith("60 models, 0 differ")


def test_c_program(exported: Any, tmp_path: Path) -> None:
    headers = official_headers()
    if headers is None:
        pytest.skip("no headers to compile with: `runtime/cpp/fetch_headers.sh build/ort` gets Debian's")
    folder = exported("native")
    (tmp_path / "lib").mkdir()
    (tmp_path / "include").symlink_to(headers)
    shared = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "lib" / name).symlink_to(shared)
    run("make", f"ORT_HOME={tmp_path}", cwd=folder)
    assert largest_difference(run(folder / "main", cwd=folder)) < 1e-4
    assert LIBRARY is not None
    assert largest_difference(run(folder / "main", folder / LIBRARY.name, cwd=folder)) < 0.2
    assert largest_difference(run(sys.executable, folder / "run.py", folder / LIBRARY.name)) < 0.2
