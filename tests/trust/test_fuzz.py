"""A few seconds of random input in every run of the tests; PTQ_FUZZ_SECONDS for longer."""

from __future__ import annotations

import os
from pathlib import Path

from tests.trust.fuzz import build, fuzz
from tests.trust.outcome import snapshot

SECONDS = float(os.environ.get("PTQ_FUZZ_SECONDS", "5"))
SEED = int(os.environ.get("PTQ_FUZZ_SEED", "1"))


def test_random_input_is_done_or_refused(tmp_path: Path) -> None:
    fuzzer = fuzz(SECONDS, SEED, tmp_path)
    said = [f"{kind}: {where}, execution {numbers[0]}" for (kind, where), (_, numbers) in fuzzer.faults.items()]
    assert not said, f"seed {SEED}: {'; '.join(said)}"
    assert {code for _, code in fuzzer.codes} <= {0, 1, 2}
    assert sum(fuzzer.codes.values()) > 5


def test_inputs_are_decided_by_seed_and_number(tmp_path: Path) -> None:
    for number in range(12):
        one, two = (tmp_path / name / str(number) for name in ("one", "two"))
        build(SEED, number, one)
        build(SEED, number, two)
        files = snapshot(one)
        assert files == snapshot(two)
        assert files != {}
