"""The examples are run as their readers would: built, built again from the cache, and again after a change.

Every one lies in a folder with a space in its name. The Python script has no cache, and the same bytes nevertheless.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
UNCHANGED = "unchanged since it was made before"
MISSED = "verdict: goal missed"
OUT = "model.int8.onnx"
CARDS = (f"{OUT}.card.json", f"{OUT}.card.md")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


def run(*command: str | Path, cwd: Path, **more: str) -> tuple[int, str]:
    """Exit code of a command, and all that it wrote."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PTQ_", "MAKE"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=1800, env={**environment, **more},
    )  # fmt: skip
    return done.returncode, done.stdout


def succeed(*command: str | Path, cwd: Path, **more: str) -> str:
    code, text = run(*command, cwd=cwd, **more)
    assert code == 0, text
    return text


def fail(*command: str | Path, cwd: Path, **more: str) -> str:
    code, text = run(*command, cwd=cwd, **more)
    assert code != 0, text
    return text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    succeed(sys.executable, EXAMPLES / "model.py", folder, cwd=folder)
    return folder


@pytest.fixture
def example(inputs: Path, tmp_path: Path) -> Any:
    """A function: name of an example -> a copy of it with model and data."""

    def copy(name: str) -> Path:
        folder = tmp_path / "with a space"
        leftovers = shutil.ignore_patterns("build", ".ptq-cache", "*.onnx*")
        shutil.copytree(EXAMPLES / name, folder, ignore=leftovers)
        shutil.copytree(inputs, folder, dirs_exist_ok=True)
        return folder

    return copy


def change(model: Path) -> None:
    """Other bytes, the same network."""
    changed = ir.load(model)
    changed.producer_version = "another"
    ir.save(changed, model)


def ask_too_much(folder: Path) -> None:
    (folder / "recipe.toml").write_text("[goals]\nmin_sqnr_db = 200.0\n")


@pytest.mark.nightly  # test_cmake_function goes through the same ptq.cmake; here a program is compiled as well
@needs("cmake", "make", "c++")
def test_cmake(example: Any) -> None:
    folder = example("cmake")
    build, model = folder / "build", folder / "build" / OUT

    def make(then: Any = succeed) -> str:
        succeed("cmake", "-G", "Unix Makefiles", "-S", folder, "-B", build, cwd=folder)
        text: str = then("cmake", "--build", build, "--parallel", "2", cwd=folder)
        return text

    def embedded() -> bytes:
        return subprocess.run([build / "app"], capture_output=True, check=True).stdout

    assert UNCHANGED not in make()
    first = model.read_bytes()
    assert embedded() == first
    assert "Quantizing" not in make()
    shutil.rmtree(build)
    assert make().count(UNCHANGED) == 1
    assert embedded() == first
    change(folder / "model.onnx")
    text = make()
    assert "Quantizing" in text
    assert UNCHANGED not in text
    assert embedded() == model.read_bytes() != first
    ask_too_much(folder)
    assert MISSED in make(fail)
    assert not model.exists()
    assert (build / CARDS[1]).exists()


@needs("cmake", "ninja")
def test_cmake_function(inputs: Path, tmp_path: Path) -> None:
    """Two models at once into one cache, and everything that may be said of one."""
    folder = tmp_path / "with a space"
    (folder / "more data").mkdir(parents=True)
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    shutil.copyfile(folder / "model.onnx", folder / "v1.2.onnx")
    shutil.copyfile(folder / "calib.npz", folder / "more data" / "calib.npz")
    (folder / "my photos").mkdir()
    with np.load(folder / "calib.npz") as data:
        for i, image in enumerate(data["image"][:17, 0]):
            pixels = ((image + 1) * 100).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "my photos" / f"image {i}.png")
    late = (folder / "my photos" / "image 16.png").rename(folder / "late.png")
    start = f'cmake_minimum_required(VERSION 3.20)\nproject(p NONE)\ninclude("{ROOT}/ptq/cmake/ptq.cmake")\n'
    lists = folder / "CMakeLists.txt"

    def configure(text: str, then: Any = succeed) -> str:
        lists.write_text(start + text)
        found: str = then("cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build", cwd=folder)
        return found

    def build() -> str:
        return succeed("ninja", "-j2", cwd=folder / "build")

    configure("""
        ptq_quantize(TARGET one MODEL v1.2.onnx DATA calib.npz CACHE kept)
        ptq_quantize(TARGET two MODEL model.onnx DATA "my photos" CACHE kept OUTPUT "sub folder/two.onnx"
          OPTIONS --channels gray --exclude "re:no such|node_linear$" --eval-data
            "${CMAKE_CURRENT_SOURCE_DIR}/more data/calib.npz"
          DEPENDS "more data/calib.npz")
        get_target_property(path two PTQ_OUTPUT)
        file(WRITE "${CMAKE_BINARY_DIR}/path" "${path}")""")
    assert UNCHANGED not in build()
    assert (folder / "build" / "v1.2.int8.onnx").exists()
    assert (folder / "build" / "path").read_text() == str(folder / "build" / "sub folder" / "two.onnx")
    assert (folder / "build" / "sub folder" / "two.onnx").exists()
    (folder / "more data" / "calib.npz").touch()
    text = build()
    assert text.count("Quantizing") == text.count(UNCHANGED) == 1
    assert "no work to do" in build()
    late.rename(folder / "my photos" / "late.png")
    text = build()
    assert (text.count("Quantizing"), text.count(UNCHANGED)) == (1, 0)
    assert "DATA is missing" in configure("ptq_quantize(TARGET one MODEL model.onnx)", fail)
    assert "RECIPES" in configure("ptq_quantize(TARGET one MODEL m.onnx DATA d.npz RECIPES r.toml)", fail)
    assert "RECIPE" in configure("ptq_quantize(TARGET one MODEL m.onnx DATA d.npz RECIPE)", fail)


@needs("make")
def test_make(example: Any) -> None:
    folder = example("make")
    shutil.copyfile(folder / "model.onnx", folder / "other.onnx")
    assert UNCHANGED not in succeed("make", "-j2", cwd=folder)
    first = (folder / OUT).read_bytes()
    assert "Nothing to be done" in succeed("make", cwd=folder)
    succeed("make", "clean", cwd=folder)
    assert sorted(path.name for path in folder.glob("*.onnx*")) == ["model.onnx", "other.onnx"]
    assert succeed("make", "-j2", cwd=folder).count(UNCHANGED) == 2
    assert (folder / OUT).read_bytes() == first
    os.utime(folder / "model.onnx")  # newer and the same
    assert succeed("make", cwd=folder).count(UNCHANGED) == 1
    assert "Nothing to be done" in succeed("make", cwd=folder)
    change(folder / "model.onnx")
    text = succeed("make", cwd=folder)
    assert text.count("ptq quantize") == 1
    assert UNCHANGED not in text
    assert (folder / OUT).read_bytes() != first
    ask_too_much(folder)
    assert MISSED in fail("make", OUT, cwd=folder)
    assert not (folder / OUT).exists()
    (folder / "calib.npz").write_bytes(b"")
    assert len(re.findall("^error: .*calib.npz", fail("make", OUT, cwd=folder), re.MULTILINE)) == 1
    assert not (folder / OUT).exists()


def holds(condition: str, values: dict[str, str]) -> bool:
    """Whether a step of an action is to be run."""
    found = re.fullmatch(r"inputs\.(\w+) ([!=]=) '(.*)'", condition)
    assert found, condition
    name, operator, text = found.groups()
    return (values[name] == text) == (operator == "==")


def github(folder: Path, given: dict[str, str]) -> tuple[int, str, dict[str, str], str]:
    """Run the steps of action.yml that are scripts: exit code, output, the action's outputs, job summary."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert set(given) <= set(action["inputs"])
    assert {name for name, facts in action["inputs"].items() if facts.get("required")} <= set(given)
    values = {name: facts.get("default", "") for name, facts in action["inputs"].items()} | given
    files = {name: folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    code, text = 0, ""
    for step in action["runs"]["steps"]:
        name, equal, expected = re.fullmatch(
            r"inputs\.(\w+) ([!=]=) '(.*)'", step.get("if", "inputs.model != ''")
        ).groups()
        if "run" not in step or (values[name] == expected) != (equal == "=="):
            continue
        environment = {
            key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: values[found[1]], value)
            for key, value in step["env"].items()
        }
        assert step["shell"] == "bash"
        assert not any("${{" in value for value in [step["run"], *environment.values()])
        environment |= {name: str(path) for name, path in files.items()}
        code, output = run(
            "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"], cwd=folder, **environment
        )
        text += output
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    assert set(outputs) <= set(action["outputs"])
    return code, text, outputs, files["GITHUB_STEP_SUMMARY"].read_text()


@needs("bash")
def test_github_action(example: Any) -> None:
    folder = example("github-action")
    workflow = yaml.safe_load((folder / "quantize.yml").read_text())
    (given,) = [step["with"] for step in workflow["jobs"]["quantize"]["steps"] if "/ptq@" in step["uses"]]
    given |= {"install": "false"}
    code, text, outputs, summary = github(folder, given)
    assert code == 0, text
    assert UNCHANGED not in text
    assert outputs == {"passed": "true", "card": CARDS[1]}
    assert summary == (folder / CARDS[1]).read_text()
    first = (folder / OUT).read_bytes()
    (folder / OUT).unlink()
    code, text, outputs, summary = github(folder, given)
    assert (code, UNCHANGED in text, outputs["passed"]) == (0, True, "true")
    assert summary == (folder / CARDS[1]).read_text()
    assert (folder / OUT).read_bytes() == first
    change(folder / "model.onnx")
    code, text, _, _ = github(folder, given)
    assert (code, UNCHANGED in text) == (0, False)
    assert (folder / OUT).read_bytes() != first
    ask_too_much(folder)
    code, text, outputs, summary = github(folder, given | {"args": "--exclude 're:no such|node_linear$' --samples 16"})
    assert (code, MISSED in text, outputs) == (1, True, {"passed": "false", "card": CARDS[1]})
    assert "200" in summary
    assert not (folder / OUT).exists()
    code, text, outputs, summary = github(folder, given | {"data": "no such", "cache": ""})
    assert (code, outputs, summary) == (2, {"passed": "false"}, "")
    assert text.startswith("error: ")
    assert github(folder, given | {"args": "'open"})[0] == 1


@needs("git")
def test_pre_commit(example: Any, tmp_path: Path) -> None:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
    own = {**who, "GIT_CONFIG_GLOBAL": os.devnull, "PRE_COMMIT_HOME": str(tmp_path / "home")}
    hooks, folder = tmp_path / "hooks", example("pre-commit")

    def git(*command: str, cwd: Path = folder) -> str:
        return succeed("git", *command, cwd=cwd, **own)

    def check(then: Any = succeed) -> str:
        git("add", ".")
        text: str = then(sys.executable, "-m", "pre_commit", "run", "--verbose", cwd=folder, **own)
        return text

    git("init", "-q", str(hooks), cwd=tmp_path)
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    git("add", ".", cwd=hooks)
    git("commit", "-qm", "hooks", cwd=hooks)
    config = folder / ".pre-commit-config.yaml"
    named = re.sub("repo: .*", f"repo: {hooks}", config.read_text())
    config.write_text(re.sub("rev: .*", f"rev: {git('rev-parse', 'HEAD', cwd=hooks).strip()}", named))
    git("init", "-q")
    assert UNCHANGED not in check()
    assert UNCHANGED in check()  # staged: the hook leaves everything as it is
    committed = git("ls-files").split()
    assert {OUT, *CARDS} <= set(committed)
    assert not [path for path in committed if "cache" in path or "bench" in path]
    git("commit", "-qm", "all")
    first = (folder / OUT).read_bytes()
    change(folder / "model.onnx")
    text = check(fail)
    assert "files were modified by this hook" in text
    assert UNCHANGED not in text
    second = (folder / OUT).read_bytes()
    assert second != first
    assert UNCHANGED in check()
    git("commit", "-qm", "changed")
    (folder / OUT).write_bytes(first)
    assert "files were modified by this hook" in check(fail)
    assert (folder / OUT).read_bytes() == second
    ask_too_much(folder)
    assert MISSED in check(fail)


def test_python(example: Any) -> None:
    """No cache: equal bytes from two clean builds."""
    folder, script = example("python"), "build.py"

    def build() -> dict[str, bytes]:
        succeed(sys.executable, script, cwd=folder)
        made = {name: (folder / name).read_bytes() for name in (OUT, *CARDS)}
        for name in made:
            (folder / name).unlink()
        return made

    first = build()
    assert build() == first
    (folder / script).write_text((folder / script).read_text().replace("25.0", "200.0"))
    assert "missed" in fail(sys.executable, script, cwd=folder)
    (folder / "calib.npz").unlink()
    assert fail(sys.executable, script, cwd=folder).startswith("error: ")
    assert not (folder / OUT).exists()
