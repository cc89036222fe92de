"""Help and completion: what every verb says of itself, and what a shell proposes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ptq.cli import main
from ptq.core.family import members, tag_of
from ptq.weights import WeightMethod

VERBS = list(main.commands)


def help_of(*words: str) -> str:
    done = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("verb", [(), *((name,) for name in VERBS)], ids=lambda verb: "".join(verb) or "ptq")
def test_help_ends_with_an_example_that_can_be_parsed(verb: tuple[str, ...]) -> None:
    text = help_of(*verb)
    assert max(map(len, text.splitlines())) <= 80
    example = text.split("Example:\n")[1].strip().splitlines()[0].strip()
    words = example.removeprefix("ptq ").split()
    if verb and verb != ("completion",):
        command = main.commands[verb[0]]
        assert isinstance(command, click.Command)
        assert command.make_context("ptq", words[1:]).params


def test_the_list_of_verbs_is_whole() -> None:
    text = help_of()
    assert "..." not in text.replace("[ARGS]...", "")
    assert [line.split()[0] for line in text.split("Commands:\n")[1].splitlines()[: len(VERBS)]] == VERBS


def test_options_stand_under_titles() -> None:
    text = help_of("quantize")
    titles = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Data and result", "Method", "Machines", "Goals", "Report", "Images", "Other"]
    assert text.index("Goals:") < text.index("--max-drop") < text.index("Report:")
    assert all(text.count(f"\n  {name} ") == 1 for name in ("--bits", "--resize", "--json", "-o, --output", "--seed"))


def test_help_is_quick() -> None:
    start = os.times().children_user
    subprocess.run([sys.executable, "-m", "ptq", "--help"], check=True, capture_output=True)
    assert os.times().children_user - start < 1.0  # what imports numpy and onnxruntime takes more
    command = [sys.executable, "-X", "importtime", "-m", "ptq", "quantize", "--help"]
    assert "onnxruntime" not in subprocess.run(command, check=True, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("ptq q", {"quantize"}),
        ("ptq quantize --target cpu", {"cpu-x86", "cpu-arm"}),
        ("ptq quantize --weights ", {tag_of(each) for each in members(WeightMethod)}),
        ("ptq quantize --activations dy", {"dynamic"}),
        ("ptq inspect --target na", {"native"}),
        ("ptq export m --target or", {"ort-mobile"}),
        ("ptq completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_a_shell_is_told_names(line: str, proposed: set[str]) -> None:
    words = line.split(" ")
    asked = {"_PTQ_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = CliRunner().invoke(main, prog_name="ptq", env=asked)
    assert {each.split(",")[1] for each in done.stdout.split()} == proposed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_what_the_shell_can_read(shell: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_PTQ_COMPLETE" in done.stdout
    if shutil.which(shell):
        (tmp_path / "script").write_text(done.stdout)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.parametrize(
    "line", ["ptq inspect mod", "ptq quantize m --data cal", "ptq quantize m -o ", "ptq bench a b"]
)
def test_a_shell_is_told_to_look_for_files(line: str) -> None:
    asked = {"_PTQ_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    assert CliRunner().invoke(main, prog_name="ptq", env=asked).stdout.startswith("file,")
