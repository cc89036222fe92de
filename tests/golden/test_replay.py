"""What this tree delivers beside what an earlier commit delivers, byte for byte, on this machine.

The earlier commit is the merge base with the main branch; on the main branch itself the commit before. `PTQ_BASE`
names another one. Runs that are meant to change stand in `changed.toml`, each with its reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from io import BytesIO
from pathlib import Path

import pytest

from ptq.files.whole import write_whole
from ptq.runtime.native import OVERRIDE, native_path
from tests.golden.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
PLACE = "tests/golden/scenarios.py"
CHANGED: dict[str, str] = tomllib.loads(Path(__file__).with_name("changed.toml").read_text())

EVERY_CARD = "every card"
"""Name under which a change of all cards stands; models are compared nevertheless."""


def git(*arguments: str) -> bytes:
    """What git prints; nothing where it fails or is missing."""
    try:
        return subprocess.run(["git", "-C", ROOT, *arguments], check=False, capture_output=True).stdout
    except OSError:
        return b""


def base() -> str:
    """The commit to compare with; empty if nobody knows."""
    if named := os.environ.get("PTQ_BASE"):
        return named
    head = git("rev-parse", "HEAD").decode().strip()
    for branch in ("origin/HEAD", "origin/main", "main"):
        found = git("merge-base", "HEAD", branch).decode().strip()
        if found:
            return found if found != head else git("rev-parse", "--verify", "-q", "HEAD~1").decode().strip()
    return ""


def kept(commit: str) -> Path:
    """Where the hashes of a commit are kept: on this machine, with these libraries, it delivers the same again."""
    packages = sorted(f"{each.name} {each.version}" for each in metadata.distributions())
    library, cpu = native_path(), Path("/proc/cpuinfo")
    flags = next((line for line in cpu.read_text().splitlines() if line[:5] == "flags"), "") if cpu.exists() else ""
    sha = git("rev-parse", commit).decode().strip()  # of a branch that moves, or a tag
    parts = (sha, sys.version, platform.processor(), os.cpu_count(), flags, *packages)
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(b"" if library is None else library.read_bytes())
    return ROOT / "build" / "replay" / f"{digest.hexdigest()}.json"


def replay(root: Path) -> dict[str, tuple[str, str]]:
    """Hashes of model and card of every run, by the code of a tree."""
    library = native_path()
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.golden.scenarios"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), OVERRIDE: str(library or "")},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return {name: (model, card) for name, model, card in map(json.loads, told.splitlines())}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """What the earlier commit delivers, and what this tree does."""
    commit = base()
    if not commit:
        pytest.skip("no earlier commit here")
    known = kept(commit)
    if known.exists():
        return {name: (model, card) for name, (model, card) in json.loads(known.read_text()).items()}, replay(ROOT)
    packed = git("archive", "--format=tar", commit)
    folder = tmp_path_factory.mktemp("base")
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        if PLACE not in archive.getnames():
            pytest.skip(f"{commit[:12]} has no {PLACE}")
        if hasattr(tarfile, "fully_trusted_filter"):  # Python before 3.11.4 has none, and asks for none
            archive.extraction_filter = tarfile.fully_trusted_filter
        archive.extractall(folder)
    before = replay(folder)
    known.parent.mkdir(parents=True, exist_ok=True)
    write_whole(known, json.dumps(before).encode())
    return before, replay(ROOT)


def test_runs_deliver_what_they_delivered_before(
    trees: tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]],
) -> None:
    before, after = trees
    assert after.keys() == SCENARIOS.keys()
    compared = slice(None) if EVERY_CARD not in CHANGED else slice(1)
    changed = {name for name in before.keys() & after.keys() if before[name][compared] != after[name][compared]}
    assert changed - CHANGED.keys() == set()


def test_what_is_meant_to_change_is_there() -> None:
    assert CHANGED.keys() <= {*SCENARIOS.keys(), EVERY_CARD}
    assert all(CHANGED.values())
