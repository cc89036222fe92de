"""Every verb takes what `ptq quantize` wrote of a handful of odd models; `python -m tests.bench_outputs` takes many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench_outputs import judged, of_case, refuses_well, row, served
from tests.trust import all_cases
from tests.trust.forks import CommandLine, Finished

NAMES = {"graph: random numbers that are multiplied by 0": [], "graph: text beside numbers": ["export native"]}
"""Model -> what it is refused by: the C program passes no text."""


@pytest.fixture(scope="module")
def command_line() -> Iterator[CommandLine]:
    with served() as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_takes_what_quantize_wrote(name: str, tmp_path: Path, command_line: CommandLine) -> None:
    case = next(case for case in all_cases() if case.name == name)
    found = row(of_case(case, tmp_path / "stage"), command_line)
    assert (found.code, found.done) == (0, 14)
    assert not found.faults
    assert [refusal.partition(":")[0] for refusal in found.refusals] == NAMES[name]


def test_what_is_no_documented_end_is_a_fault() -> None:
    def ended(code: int | None, out: str = "", err: str = "") -> Finished:
        return Finished(code, 0.0, 0.0, out, err)

    assert judged(["bench"], ended(1)) == ["exit code 1"]
    assert judged(["diff", "--json"], ended(0, '{"a": NaN}')) == ["JSON: NaN is no JSON"]
    assert judged(["inspect"], ended(0, "", "[W:onnxruntime:, graph.cc] x"))
    assert judged(["inspect"], ended(2, "", "error: q.onnx: it is odd; give another\n"))
    assert judged(["export"], ended(1, "", "Traceback (most recent call last)\nKeyError: 'x'\n")) == [
        "traceback: KeyError: 'x'"
    ]
    assert not judged(["export"], ended(2, "", "error: q.onnx: text; expected numbers\n"))
    assert not refuses_well("error: one\nerror: two; three\n")
