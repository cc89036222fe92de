"""Print the table: what was given, exit code, seconds, what was said, and what is wrong with it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.trust import all_cases
from tests.trust.forks import CommandLine
from tests.trust.outcome import play

WIDTH = 300


def main(patterns: list[str]) -> int:
    """Play the cases whose names hold one of the patterns (all without any); the exit code counts the faults."""
    cases = [case for case in all_cases() if not patterns or any(pattern in case.name for pattern in patterns)]
    wrong = 0
    with CommandLine() as command_line:
        for case in cases:
            with tempfile.TemporaryDirectory(prefix="trust-") as folder:
                outcome = play(case, Path(folder) / "stage", command_line)
                line = outcome.line.replace(f"{folder}/stage/", "")[:WIDTH]
            wrong += bool(outcome.faults)
            verdict = f"WRONG: {'; '.join(outcome.faults)}".replace(f"{folder}/stage/", "") if outcome.faults else "ok"
            code, seconds = outcome.finished.code, outcome.finished.seconds
            print(f"{case.name} | {case.expected} | {code} | {seconds:.1f} s | {line} | {verdict}", flush=True)  # noqa: T201
    print(f"{len(cases)} cases, {wrong} wrong")  # noqa: T201
    return min(wrong, 125)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
