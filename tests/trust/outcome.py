"""Play a case and say everything that is wrong with what happened."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions

from tests.trust.cases import Case, Stage
from tests.trust.forks import CommandLine, Finished

SECONDS = 10.0
HASHED_BYTES = 2**26
PEAK_MB = 1024
LINE_LENGTH = 1000
SECRET = b"TOP-SECRET-"
PRODUCTS = ("", ".card.json", ".card.md", ".bench.json")
SAME_ANSWERS = 0.8

Facts = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        finished: How the process ended.
        faults: What should not have happened.
    """

    finished: Finished
    faults: tuple[str, ...]

    @property
    def line(self) -> str:
        """The last line on stderr."""
        return (self.finished.stderr.strip().splitlines() or [""])[-1]


def play(case: Case, root: Path, command_line: CommandLine) -> Outcome:
    """Build a case, run the command line on it, and compare with what is expected."""
    stage = Stage.at(root)
    case.build(stage)
    before = snapshot(root)
    finished = command_line.run(stage.arguments, root=root, limits=stage.limits, seconds=SECONDS)
    changes = _changes(before, snapshot(root))
    refused = case.expected == "error" or (case.expected == "either" and finished.code != 0)
    faults = _common(finished) + (
        _refusal(case, finished, changes) if refused else _success(case, stage, finished, changes)
    )
    return Outcome(finished, tuple(faults))


def snapshot(root: Path) -> Facts:
    """Everything under a folder: kind, mode, size, contents."""
    facts: Facts = {}
    for path in sorted(root.rglob("*")):
        entry = path.lstat()
        contents: Any = None
        if stat.S_ISLNK(entry.st_mode):
            contents = str(path.readlink())
        elif stat.S_ISREG(entry.st_mode):
            whole = entry.st_size <= HASHED_BYTES and os.access(path, os.R_OK)
            contents = hashlib.sha256(path.read_bytes()).hexdigest() if whole else entry.st_mtime_ns
        size = entry.st_size if stat.S_ISREG(entry.st_mode) else 0
        facts[str(path.relative_to(root))] = (entry.st_mode, size, contents)
    return facts


def _changes(before: Facts, after: Facts) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _common(finished: Finished) -> list[str]:
    faults = []
    if finished.code is None:
        faults.append(f"took longer than {SECONDS:g} s")
    if finished.code is not None and finished.code < 0:
        faults.append(f"died of signal {-finished.code}")
    if "Traceback" in finished.stdout + finished.stderr:
        faults.append("traceback")
    if SECRET.decode() in finished.stdout + finished.stderr:
        faults.append("told the secret")
    if finished.peak_mb > PEAK_MB:
        faults.append(f"took {finished.peak_mb:.0f} MB")
    return faults


def _refusal(case: Case, finished: Finished, changes: set[str]) -> list[str]:
    faults = [] if finished.code == 2 else [f"exit code {finished.code}, expected 2"]
    lines = finished.stderr.splitlines()
    if len(lines) != 1:
        faults.append(f"{len(lines)} lines on stderr, expected one")
    if not lines or not lines[-1].startswith("error: "):
        faults.append("no line that begins with error:")
    if not any(word in finished.stderr for word in case.words):
        faults.append(f"the line names none of {', '.join(case.words)}")
    if len(finished.stderr) > LINE_LENGTH:
        faults.append(f"a line of {len(finished.stderr)} characters")
    if changes:
        faults.append(f"new or changed: {', '.join(sorted(changes))}")
    return faults


def _success(case: Case, stage: Stage, finished: Finished, changes: set[str]) -> list[str]:
    if finished.code != 0:
        return [f"exit code {finished.code}, expected 0"]
    faults = []
    products = {str((stage.output.parent / (stage.output.name + end)).relative_to(stage.root)) for end in PRODUCTS}
    if changes - products:
        faults.append(f"new or changed: {', '.join(sorted(changes - products))}")
    if products - changes:
        faults.append(f"not written: {', '.join(sorted(products - changes))}")
        return faults
    if any(SECRET in path.read_bytes() for path in stage.output.parent.iterdir() if path.is_file()):
        faults.append("wrote the secret")
    return faults + _compare(stage, case.floor_db)


def _compare(stage: Stage, floor_db: float) -> list[str]:
    """Open both models as a user would and run them side by side."""
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        models = [
            InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in (stage.reference or stage.model, stage.output)
        ]
    except Exception as error:
        return [f"does not load: {' '.join(str(error).split())[:200]}"]
    sides: list[Callable[[InferenceSession], Any]] = [lambda m: m.get_inputs(), lambda m: m.get_outputs()]
    for side in sides:
        float_side, other = ([(value.name, value.type) for value in side(model)] for model in models)
        if float_side != other:
            return [f"inputs or outputs are {other[:4]}, expected {float_side[:4]}"]
    try:
        results = [[model.run(None, feed) for feed in stage.feeds] for model in models]
    except Exception as error:
        return [f"does not run: {' '.join(str(error).split())[:200]}"]
    names = [value.name for value in models[0].get_outputs()]
    columns = [list(zip(*rows, strict=True)) for rows in results]
    return [
        fault
        for name, expected, found in zip(names, *columns, strict=True)
        for fault in _differences(name, expected, found, floor_db)
    ]


def _differences(name: str, expected: Any, found: Any, floor_db: float) -> list[str]:
    if not isinstance(expected[0], np.ndarray):
        return [] if repr(expected) == repr(found) else [f"output {name[:40]} differs"]
    if [(a.shape, a.dtype) for a in expected] != [(a.shape, a.dtype) for a in found]:
        return [f"output {name[:40]} has another shape or type"]
    one, two = (np.concatenate([array.reshape(-1) for array in arrays]) for arrays in (expected, found))
    if one.dtype.kind in "iubOSU":
        share = float(np.mean(one == two)) if one.size else 1.0
        return [] if share >= SAME_ANSWERS else [f"output {name[:40]}: only {share:.0%} of the answers are the same"]
    return _distance(name, one.astype(np.float64), two.astype(np.float64), floor_db)


def _distance(name: str, one: NDArray[np.float64], two: NDArray[np.float64], floor_db: float) -> list[str]:
    finite = np.isfinite(one)
    if not np.isfinite(two[finite]).all():
        return [f"output {name[:40]} is not finite"]
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return [f"output {name[:40]} is finite where the float one is not"]
    signal, noise = float(np.sum(one[finite] ** 2)), float(np.sum((one[finite] - two[finite]) ** 2))
    if noise <= signal * 10 ** (-floor_db / 10):
        return []
    found = 10 * np.log10(signal / noise) if signal else -np.inf
    return [f"output {name[:40]} has {found:.1f} dB, expected {floor_db:g}"]
