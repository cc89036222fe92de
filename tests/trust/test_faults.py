"""Whatever happens to a run: the older output or a whole new one, one line, and nothing left behind.

PTQ_KILLS is the number of kills at random instants, all scenes together; PTQ_SEED chooses other instants.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.builders import random
from tests.trust.cases import Stage
from tests.trust.faults import Ended, Fault, Order, Saboteur, instants
from tests.trust.scenes import CARDS, PLAIN, Kind, Scene, build, plain

pytestmark = pytest.mark.skipif(not (shutil.which("cc") and sys.platform == "linux"), reason="needs Linux and cc")
KILLS, SEED = int(os.environ.get("PTQ_KILLS", "12")), int(os.environ.get("PTQ_SEED", "0"))
KINDS: tuple[Kind, ...] = get_args(Kind)
MANY = KILLS >= 100
PROMPT, BUSY = 2.0, 5.0
"""Seconds to the end after a signal; the second while onnxruntime computes, which no signal interrupts."""

NIGHTLY = pytest.mark.nightly
LONG_FAILURES: set[tuple[Kind, bool]] = {("huge", False), ("data", True)}
"""Sweeps whose calls and whose kind of output other sweeps see too."""


def nightly(kinds: tuple[Kind, ...], *long: Kind) -> list[Any]:
    """Kinds as parameters; some only every night, where the others show nearly the same."""
    return [pytest.param(kind, marks=[NIGHTLY] * (kind in long)) for kind in kinds]


TWICE = """
import sys
from ptq.cli import main
for number, options in enumerate([[], ["--weights", "gptq", "--bits", "4"]]):
    try:
        main([*sys.argv[1:], "-q", "-o", f"{sys.argv[2]}.{number}", *options])
    except SystemExit as error:
        assert not error.code, error.code
"""


@pytest.fixture(scope="module")
def saboteur() -> Iterator[Saboteur]:
    with Saboteur() as running:
        yield running


@pytest.fixture(scope="module")
def scene_of(saboteur: Saboteur, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Scene]:
    built: dict[Kind, Scene] = {}

    def scene(kind: Kind) -> Scene:
        if kind not in built:
            built[kind] = build(kind, tmp_path_factory.mktemp(kind) / "stage", saboteur)
        return built[kind]

    return scene


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Every step takes a good part of a second."""
    stage = Stage.at(tmp_path_factory.mktemp("slow") / "stage")
    layers = [f"c{i} = Conv <pads = [1, 1, 1, 1]> (r{i}, w{i})\n r{i + 1} = Relu (c{i})" for i in range(5)]
    channels = [3, *[32] * 5]
    weights = {f"w{i}": random((channels[i + 1], channels[i], 3, 3), i) / 16 for i in range(5)}
    body = "\n".join(layers)
    stage.put_text(f"net (float[N, 3, 24, 24] r0) => (float[N, 32, 24, 24] r5) {{\n{body}\n}}", weights)
    stage.put_data(r0=np.tile(random((1, 3, 24, 24), 9), (48, 1, 1, 1)))
    stage.options = ["-q", "--weights", "gptq", "--bits", "4"]
    return stage


@pytest.mark.parametrize("old", [False, True], ids=["nothing there", "older output there"])
@pytest.mark.parametrize("kind", nightly(KINDS, "data", "huge"))
def test_killed_at_random_instants(
    kind: Kind, old: bool, saboteur: Saboteur, scene_of: Callable[[Kind], Scene]
) -> None:
    scene = scene_of(kind)
    assert scene.seen
    share = -(-KILLS // (2 * len(KINDS)))
    faults = instants(scene.seen.phases, scene.seen.seconds, share, SEED + 10 * KINDS.index(kind) + old)
    _require(_killed(scene, saboteur, faults, old=old))


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_each_call_that_changes_the_output(
    kind: Kind, saboteur: Saboteur, scene_of: Callable[[Kind], Scene]
) -> None:
    scene = scene_of(kind)
    kinds = {"file": "write rename", "data": "rename", "huge": "rename"}[kind]
    faults = [Fault(call=call, failure=-signal.SIGKILL) for call in _chosen(scene, under="out/", kinds=kinds)]
    _require(_killed(scene, saboteur, faults, old=True))


def _chosen(scene: Scene, *, under: str = "", kinds: str = "open write sync rename mkdir close chmod") -> list[int]:
    """Calls of some kinds: each of those that differ, all of them where many kills are asked for."""
    assert scene.seen
    numbers: dict[str, int] = {}
    for number, call in enumerate(scene.seen.calls, start=1):
        if f" {under}" in call and (MANY or call.split()[0] in kinds.split()):
            key = re.sub(r"\d+(?=\.npy)", "*", plain(call))
            key = key if call.startswith("rename") else re.sub("card.md|bench.json", "card.json", key)
            numbers.setdefault(f"{number if MANY or key == 'sync out' else ''} {key}", number)
    return list(numbers.values())


def _killed(scene: Scene, saboteur: Saboteur, faults: list[Fault], *, old: bool) -> list[str]:
    """What is wrong after each kill, after going on from it, and after the next run to the end."""
    found = []
    scene.reset(old=old)
    for fault in faults:
        ended = saboteur.run(scene.order(fault))
        where = _instant(fault, ended)
        if ended.code not in (-signal.SIGKILL, 0):
            found.append(f"{where}: exit code {ended.code}")
        found += [f"{where}: {each}" for each in scene.inconsistencies(old=old)]
        if scene.constants:
            found += [f"{where}, then run again: {each}" for each in _continued(scene, saboteur)]
        scene.restore(old=old)
    found += [f"the next run: {each}" for each in _continued(scene, saboteur)]
    left = [name for name in scene.strays() if name.startswith("out/")]
    return found + [f"the next run: leaves {len(left)} files of killed ones, {left[:2]}"] * bool(left)


def _continued(scene: Scene, saboteur: Saboteur) -> list[str]:
    ended = saboteur.run(scene.order())
    found = [f"exit code {ended.code}: {_last(ended)}"] * (ended.code != 0)
    return found + [f"{scene.states()}"] * (not scene.is_new())


def _last(ended: Ended) -> str:
    return (ended.stderr.strip().splitlines() or [""])[-1][:200]


def _instant(fault: Fault, ended: Ended) -> str:
    if fault.call:
        return f"call {fault.call} ({(ended.calls or ['none'])[-1]})"
    return f"{fault.phase} + {fault.after * 1e3:.1f} ms ({(ended.calls or ['none'])[-1]})"


@pytest.mark.parametrize(("kind", "lasting"), [
    pytest.param(kind, lasting, id=f"{kind}-{when}", marks=[NIGHTLY] * ((kind, lasting) in LONG_FAILURES))
    for lasting, when in ((False, "once"), (True, "from then on")) for kind in KINDS
])  # fmt: skip
def test_calls_that_fail(kind: Kind, lasting: bool, saboteur: Saboteur, scene_of: Callable[[Kind], Scene]) -> None:
    scene, found = scene_of(kind), []
    kinds = {"file": "open write sync rename mkdir", "data": "write rename", "huge": "write rename"}[kind]
    for call in _chosen(scene, kinds="mkdir rename" if lasting else kinds):
        number = (errno.ENOSPC, errno.EIO)[call % 2]
        scene.reset(old=True)
        ended = saboteur.run(scene.order(Fault(call=call, failure=number, lasting=lasting)))
        spoiled = next(itertools.islice(ended.calls, call - 1, None), "none")
        # Libraries keep to themselves why they could not write.
        told = not re.search(r"optimized\.onnx|profile_|\.data|\.npy", spoiled)
        cause = os.strerror(number) if told else " write"
        found += [f"call {call} ({spoiled}): {each}" for each in _refused(scene, ended, cause)]
    _require(found)


def test_missed_goals_that_cannot_be_told_leave_the_older_output(
    saboteur: Saboteur, scene_of: Callable[[Kind], Scene]
) -> None:
    scene, found = scene_of("file"), []
    goal = ["--min-sqnr-db", "200"]
    scene.reset(old=True)
    calls = saboteur.run(scene.order(options=goal)).calls
    for number, call in enumerate(calls, start=1):
        if call.startswith(("write out/", "rename out/")):
            scene.reset(old=True)
            ended = saboteur.run(scene.order(Fault(call=number, failure=errno.ENOSPC), goal))
            found += [f"call {number} ({call}): {each}" for each in _refused(scene, ended, os.strerror(errno.ENOSPC))]
    _require(found)


def test_weights_of_an_older_output_go_when_the_new_one_has_none_beside_it(
    saboteur: Saboteur, scene_of: Callable[[Kind], Scene]
) -> None:
    scene = scene_of("data")
    scene.reset(old=True)
    assert saboteur.run(replace(scene.order(), constants={})).code == 0
    names = {path.name for path in scene.output.iterdir()}
    assert names == {name for name in scene.new if name == "q.onnx" or name.endswith(CARDS)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_words_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path / "stage")
    stage.put_works()
    stage.options = list(PLAIN)
    for arguments in (stage.arguments, ["methods"], ["methods", "--help"], ["--help"], ["--version"], ["--cmakedir"]):
        code, lines = _run_full(arguments, stage.root, "stdout")
        assert (code, len(lines)) == (2, 1), arguments
        assert lines[0].startswith(f"error: standard output: {os.strerror(errno.ENOSPC)}"), arguments
    assert _run_full([*stage.arguments, "--nonsense"], stage.root, "stderr") == (2, [])


def _run_full(arguments: list[str], folder: Path, stream: str) -> tuple[int, list[str]]:
    """The exit code and the lines on the other stream, with what is written kept back as well as at once."""
    ends = []
    for buffering in ({}, {"PYTHONUNBUFFERED": "1"}):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffering
        with Path("/dev/full").open("w") as full:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
            command = [sys.executable, "-m", "ptq", *arguments]
            ended = subprocess.run(command, text=True, check=False, cwd=folder, env=environment, **streams)
        ends.append((ended.returncode, (ended.stderr or ended.stdout or "").splitlines()))
    assert ends[0] == ends[1]
    return ends[0]


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--help"], ["--help"], ["--version"]])
def test_words_that_nobody_listens_to_are_no_failure(arguments: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ptq", *arguments]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def _refused(scene: Scene, ended: Ended, cause: str) -> list[str]:
    """Success, or one line and nothing else."""
    strays = scene.strays()
    found = [f"traceback, {_last(ended)}"] * ("Traceback" in ended.stderr)
    found += [f"left {strays}"] * bool(set(strays) - {"out/.q.onnx.partial"})
    if ended.code == 0:
        return found + [f"exit code 0 and {scene.states()}"] * (not scene.is_new())
    lines = ended.stderr.splitlines()
    if not found and (ended.code != 2 or len(lines) != 1 or not lines[0].startswith("error: ")):
        found.append(f"exit code {ended.code} and {lines}")
    if not found and lines and cause not in ended.stderr:
        found.append(f"the line does not say {cause!r}: {lines[0]}")
    committed = "card" in (lines or [""])[0] and scene.states()["q.onnx"] == "new"  # only cards could not follow
    return found + [f"exit code {ended.code} and {scene.states()}"] * (not scene.is_old() and not committed)


STEPS = [("start", 0.02), ("read", 0.0), ("equalize", 0.1), ("calibrate", 0.03), ("solve", 0.2),
         ("verify", 0.06), ("write", 0.0), ("write", 0.008)]  # fmt: skip


HALVES = [STEPS[::2], STEPS[1::2]]
"""Every run of the tests sees each step with one of the signals, every night with both."""


@pytest.mark.parametrize(("number", "codes", "steps"), [
    pytest.param(number, codes, HALVES[half], id=f"{number:d}-half{half}", marks=[NIGHTLY] * (half != first))
    for number, codes, first in ((signal.SIGINT, (130, -2), 0), (signal.SIGTERM, (143, -15), 1)) for half in (0, 1)
])  # fmt: skip
def test_interrupted(
    number: int, codes: tuple[int, ...], steps: list[tuple[str, float]], saboteur: Saboteur, slow: Stage
) -> None:
    found = []
    for phase, after in steps:
        for folder in ("out", "temp"):
            shutil.rmtree(slow.root / folder)
            (slow.root / folder).mkdir()
        fault = Fault(signal=number, phase=phase, after=after)
        never = {
            "SAVE_SECONDS": 1e9
        }  # long runs keep what an interrupted one goes on from, and a busy machine's is long
        ended = saboteur.run(Order(slow.arguments, str(slow.root), fault, never))
        found += [f"{phase} + {after:g} s: {each}" for each in _interruption(slow, ended, codes)]
    _require(found)


def _interruption(stage: Stage, ended: Ended, codes: tuple[int, ...]) -> list[str]:
    names = {name.name for name in (stage.root / "out").iterdir()}
    if ended.code in (0, *codes) and "write" in ended.phases and len(names) == 4:
        return []  # all was written
    found = [f"exit code {ended.code} after {[*ended.phases][-1]}"] * (ended.code not in codes)
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    found += [f"{len(lines)} lines, the last one {_last(ended)}"] * (len(lines) > 1)
    late = ended.reaction is None or ended.reaction > (
        BUSY if {"calibrate", "verify"} & ended.phases.keys() else PROMPT
    )
    found += [f"took {ended.reaction} s"] * late
    left = [
        path.relative_to(stage.root) for folder in ("out", "temp", "cwd") for path in (stage.root / folder).iterdir()
    ]
    return found + [f"left {sorted(map(str, left))}"] * bool(left)


@pytest.mark.parametrize("kind", nightly(KINDS, "data"))
def test_parallel_runs(kind: Kind, saboteur: Saboteur, scene_of: Callable[[Kind], Scene]) -> None:
    scene, found = scene_of(kind), []
    scene.reset(old=False)
    ends = saboteur.run_all([scene.order(name=f"q{number}.onnx") for number in range(4)])
    found += [f"exit code {end.code}: {_last(end)}" for end in ends if end.code]
    hashes = {_hash(path) for path in sorted(scene.output.glob("q?.onnx" if kind == "file" else "q?.onnx.data"))}
    found += [f"{len(hashes)} different outputs"] * (len(hashes) != 1)
    left = sorted(path.name for path in scene.output.iterdir() if path.name.startswith("."))
    found += [f"left {left}"] * bool(left)
    for _ in range(2 if not MANY else 10):
        scene.reset(old=True)
        ends = saboteur.run_all([scene.order() for _ in range(4)])
        found += [f"same output: exit code {end.code}: {_last(end)}" for end in ends if end.code]
        found += [f"same output: {scene.states()}"] * (not scene.is_new())
        found += [f"same output: left {scene.strays()}"] * bool(scene.strays())
    _require(found)


@pytest.mark.parametrize("kind", nightly(("file", "data"), "file"))
def test_parallel_runs_that_differ(kind: Kind, saboteur: Saboteur, scene_of: Callable[[Kind], Scene]) -> None:
    scene, found = scene_of(kind), []
    for _ in range(3 if not MANY else 20):
        scene.reset(old=False)
        ends = saboteur.run_all([scene.order(options=scene.other * (number % 2)) for number in range(4)])
        found += [f"exit code {end.code}: {_last(end)}" for end in ends if end.code]
        wrong = scene.inconsistencies(old=False)
        found += [f"afterwards: {each}" for each in wrong if ".bench." not in each]  # no two are alike
        found += [f"afterwards: left {scene.strays()}"] * bool(scene.strays())
    _require(found)


@pytest.mark.nightly
def test_same_bytes_everywhere(tmp_path: Path) -> None:
    stage = Stage.at(tmp_path / "stage")
    stage.put_works()
    settings = [("0", {0}, "C", "cwd"), ("1", {0, 1}, "C.UTF-8", "elsewhere"), ("2", {0, 1}, "C", "elsewhere")]
    cores = os.sched_getaffinity(0)
    written: list[tuple[str, ...]] = []
    for seed, wanted, language, folder in settings:
        chosen = wanted & cores or cores
        result = subprocess.run(
            [sys.executable, "-c", TWICE, "quantize", str(stage.model), "--data", str(stage.data)],
            cwd=stage.root / folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "LANG": language, "LC_ALL": language},
            preexec_fn=functools.partial(os.sched_setaffinity, 0, chosen),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        paths = [Path(f"{stage.model}.{number}{end}") for number in (0, 1) for end in ("", ".card.json", ".card.md")]
        written.append(tuple(map(_hash, paths)))
        for path in paths:
            path.unlink()
    assert len(set(written)) == 1, written


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _require(found: list[str]) -> None:
    """Nothing may have been found; what was is told once with the places where it was first and last."""
    places: dict[str, list[str]] = {}
    for each in found:
        place, _, what = plain(each).partition(": ")
        places.setdefault(what, []).append(place)
    lines = [f"{len(at)} x {what}\n        {at[0]} ... {at[-1]}" for what, at in places.items()]
    assert not found, f"{len(found)} faults:\n" + "\n".join(lines)
