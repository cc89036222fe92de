"""What README promises to builds: exit codes and the keys of every verb's --json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq.cli import main
from ptq.cli.running import GOAL_MISSED, INTERRUPTED, TERMINATED, USER_ERROR
from tests.builders import conv_net, feeds

SECTION = (Path(__file__).parents[2] / "README.md").read_text().partition("## In a build")[2].partition("\n## ")[0]
VERBS = {
    "quantize": ["m.onnx", "--data", "d.npz", "-o", "q.onnx"],
    "validate": ["m.onnx", "m.onnx", "--data", "d.npz"],
    "bench": ["m.onnx", "--seconds", "0"],
    "inspect": ["m.onnx"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ir.save(conv_net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(16, 3, 16, 16)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_json_has_the_keys_that_are_promised(verb: str) -> None:
    (row,) = re.findall(rf"^\| `{verb}` \| (.*) \|$", SECTION, re.MULTILINE)
    done = CliRunner().invoke(main, [verb, *VERBS[verb], "--json"])
    assert done.exit_code == 0, done.output
    assert sorted(json.loads(done.stdout)) == sorted(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("verb", ["quantize", "validate"])
def test_a_missed_goal_is_an_object_too(verb: str, folder: Path) -> None:
    done = CliRunner().invoke(main, [verb, *VERBS[verb], "--json", "--min-sqnr-db", "1e9"])
    assert done.exit_code == 1
    facts = json.loads(done.stdout)
    assert facts.get("passed", facts.get("verdict", {}).get("passed")) is False
    assert not (folder / "q.onnx").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_after_an_error_stdout_is_empty(verb: str, folder: Path) -> None:
    (folder / "m.onnx").write_bytes(b"\0")
    done = CliRunner().invoke(main, [verb, *VERBS[verb], "--json"])
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_every_exit_code_is_documented() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", SECTION, re.MULTILINE)
    assert [int(code) for row in rows for code in row.split(",")] == [
        0,
        GOAL_MISSED,
        USER_ERROR,
        INTERRUPTED,
        TERMINATED,
    ]


def test_cmake_is_told_where_to_look() -> None:
    done = CliRunner().invoke(main, ["--cmakedir"])
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 1)
    assert (Path(done.stdout.strip()) / "ptq.cmake").is_file()
