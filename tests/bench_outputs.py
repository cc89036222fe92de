"""Every verb on what `ptq quantize` wrote: of odd models, and of released ones, as `bench_released --keep` leaves them.

python -m tests.bench_outputs [--every N] [--options TEXT] [--released FOLDER] [PATTERN ...] prints a row per model, and
a total: exit code of quantize, number of commands, refusals (exit code 2, one line that says what, where and what
next), and what is wrong. Models are taken whose names hold a pattern, else every Nth.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ptq.exporters import EXPORTERS
from tests.trust import all_cases
from tests.trust.cases import Case, Stage
from tests.trust.forks import CommandLine, Finished
from tests.trust.outcome import LINE_LENGTH

SECONDS = 600.0
CHECKED = ("arm64", "ort-mobile")
"""Exports whose check is a Python program, which is run."""

REFUSING = ("diff", "export")
"""Verbs that may refuse a model that quantize wrote: nothing to compare, or a format that cannot hold it."""

MISSING_GOALS = ("quantize", "validate")


@dataclass(frozen=True)
class Given:
    """A model to be quantized, and what to call it with.

    Attributes:
        name: What it is called in the table.
        root: Folder with `cwd`, `temp` and `out` in it.
        model: The float model.
        data: Calibration set; None stands for random data.
        options: More arguments of quantize.
    """

    name: str
    root: Path
    model: Path
    data: Path | None
    options: Sequence[str] = ()

    @property
    def output(self) -> Path:
        """Where quantize writes to."""
        return self.root / "out/q.onnx"


@dataclass(frozen=True)
class Row:
    """What came of a model.

    Attributes:
        name: The model.
        code: Exit code of quantize.
        done: Number of commands that were run.
        refusals: Verb and error line of those that ended with 2.
        faults: What should not have happened.
    """

    name: str
    code: int | None
    done: int
    refusals: tuple[str, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """One line of the table."""
        cells = (self.name, self.code, self.done, "; ".join(self.refusals), "; ".join(self.faults) or "ok")
        return f"| {' | '.join(' '.join(str(cell).split()).replace('|', '/') for cell in cells)} |"


def verbs(given: Given, output: Path) -> Iterator[list[str]]:
    """Yield every command that takes a quantized model."""
    data = [] if given.data is None else ["--data", str(given.data)]
    pair = [str(given.model), str(output)]
    told = [["inspect", str(output), *data], ["bench", *pair, *data, "--seconds", "0.1"]]
    told += [[verb, *pair, *data] for verb in ("diff", "validate") if data]
    for command in told:
        yield command
        yield [*command, "--json"]
    yield ["report", f"{output}.card.json", "-o", str(given.root / "out/page.html")]
    for target in EXPORTERS:
        extra = ["--float", str(given.model)] if target == "web" else []
        yield ["export", str(output), *data, "--target", target, *extra, "-o", str(given.root / "out" / target)]


def judged(command: Sequence[str], finished: Finished) -> list[str]:
    """Say everything that is wrong with how a command ended."""
    verb, code, faults = command[0], finished.code, []
    if code is None or code < 0:
        return [f"took longer than {SECONDS:g} s" if code is None else f"died of signal {-code}"]
    if "Traceback" in finished.stdout + finished.stderr:
        return [f"traceback: {finished.stderr.strip().splitlines()[-1]}"]
    if code == 2:
        return [] if verb in REFUSING and refuses_well(finished.stderr) else [f"refused: {finished.stderr.strip()}"]
    if code not in (0, 1) or (code == 1 and verb not in MISSING_GOALS):
        faults.append(f"exit code {code}")
    if "onnxruntime:" in finished.stderr:
        faults.append(f"talks: {finished.stderr.strip().splitlines()[0]}")
    if "--json" in command:
        faults += _unreadable(finished.stdout)
    return faults


def refuses_well(said: str) -> bool:
    """Whether a refusal is one line of what, and what next; that a model of ours does not run is none."""
    line = said.strip()
    if "onnxruntime cannot" in line or "onnxruntime fails" in line:
        return False
    return (
        "\n" not in line
        and line.startswith("error: ")
        and len(line) <= LINE_LENGTH
        and any(word in line for word in (";", "expected"))
    )


def _unreadable(text: str) -> list[str]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return [f"JSON: {error}"]
    return []


def checked(folder: Path) -> list[str]:
    """Run the check of an export."""
    done = subprocess.run([sys.executable, folder / "run.py"], capture_output=True, text=True, check=False)
    return [f"its check: {(done.stderr or done.stdout).strip().splitlines()[-1]}"] if done.returncode else []


def row(given: Given, command_line: CommandLine) -> Row:
    """Quantize a model, and run every verb on what came of it."""

    def run(arguments: Sequence[str]) -> Finished:
        return command_line.run(list(arguments), root=given.root, limits={}, seconds=SECONDS)

    data = ["--random-data"] if given.data is None else ["--data", str(given.data)]
    options = [option for option in given.options if option != "--random-data"]
    command = ["quantize", str(given.model), *data, "-o", str(given.output), *options]
    first = run(command)
    faults, refusals, done = judged(command, first), [], 1
    output = given.output if first.code == 0 else given.output.with_name("q.rejected.onnx")
    for command in verbs(given, output) if first.code in (0, 1) and not faults else ():
        finished = run(command)
        done += 1
        what = " ".join([command[0], *(word for word in command if word in EXPORTERS or word == "--json")])
        found = judged(command, finished)
        if finished.code == 2 and not found:
            refusals.append(f"{what}: {finished.stderr.strip().removeprefix('error: ')}")
        elif command[0] == "export" and what.split()[-1] in CHECKED and not found:
            found = checked(given.root / "out" / what.split()[-1])
        faults += [f"{what}: {fault}" for fault in found]
    place = str(given.root)
    plain = [tuple(text.replace(f"{place}/", "") for text in texts) for texts in (refusals, faults)]
    return Row(given.name, first.code, done, *plain)


def served() -> CommandLine:
    """The command line, without compilers: `make edge` takes these."""
    command_line = CommandLine("tests.trust.verbs")
    command_line.environment = {"PATH": ""}
    return command_line


def of_case(case: Case, root: Path) -> Given:
    """Build an odd model."""
    stage = Stage.at(root)
    case.build(stage)
    (root / "cwd").mkdir(exist_ok=True)
    return Given(case.name, root, stage.model, stage.data, stage.options)


def of_folder(folder: Path, root: Path, options: Sequence[str] = ("--fast",)) -> Given:
    """Take a released model; its data holds whole feeds."""
    for name in ("out", "cwd", "temp"):
        (root / name).mkdir(parents=True)
    return Given(folder.name, root, folder / "model.onnx", folder / "calib.npz", options)


def chosen(patterns: Sequence[str], every: int, released: Path | None) -> Mapping[str, Case | Path]:
    """Odd models that have to work, and folders of released ones, by name."""
    found: dict[str, Case | Path] = {case.name: case for case in all_cases() if case.expected == "works"}
    for folder in sorted(released.iterdir()) if released else ():
        if (folder / "calib.npz").is_file():
            found[folder.name] = folder
    if patterns:
        return {name: each for name, each in found.items() if any(pattern in name for pattern in patterns)}
    return dict(list(found.items())[::every])


def main() -> int:
    """Print the table; the exit code is 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--options", default="", help="more of quantize, in one word: '--weight-only --bits 4'")
    parser.add_argument("--released", type=Path, help="folder of folders with model.onnx and calib.npz")
    given = parser.parse_args()
    rows = []
    print("| model | quantize | commands | refusals | faults |\n|---|---|---|---|---|", flush=True)  # noqa: T201
    with served() as command_line:
        for each in chosen(given.patterns, given.every, given.released).values():
            with TemporaryDirectory(prefix="outputs-") as folder:
                root = Path(folder) / "stage"
                made = of_folder(each, root) if isinstance(each, Path) else of_case(each, root)
                options = (*made.options, *shlex.split(given.options))
                rows.append(row(replace(made, options=options), command_line))
            print(rows[-1], flush=True)  # noqa: T201
    wrong = [each for each in rows if each.faults]
    commands, refused = sum(each.done for each in rows), sum(len(each.refusals) for each in rows)
    print(f"{len(rows)} models, {commands} commands, {refused} refused, {len(wrong)} models with faults")  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
