"""Every broken input is one line and exit code 2, every odd one a model that works; nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust import all_cases
from tests.trust.cases import Case
from tests.trust.forks import CommandLine
from tests.trust.outcome import play


@pytest.fixture(scope="module")
def command_line() -> Iterator[CommandLine]:
    with CommandLine() as running:
        yield running


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path, command_line: CommandLine) -> None:
    outcome = play(case, tmp_path / "stage", command_line)
    assert not outcome.faults, f"{'; '.join(outcome.faults)}: {outcome.line}"


def test_names_are_unique_and_groups_are_large() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert sum(case.expected == "error" for case in cases) >= 110
    assert sum(case.expected == "works" for case in cases) >= 70
