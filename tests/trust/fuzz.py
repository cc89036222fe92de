"""Random input for `ptq quantize`: whatever a file or an option says, it is done, or refused in one line.

    python -m tests.trust.fuzz --seconds 600 --seed 1 --keep FOLDER

Every execution is decided by the seed and its number. A fault of a new kind is written to FOLDER with all its inputs.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

import ptq
from tests.builders import random
from tests.trust import all_cases, mutate_data
from tests.trust.broken_data import IDS
from tests.trust.broken_images import GOOD
from tests.trust.cases import Stage, proto_of
from tests.trust.forks import MEMORY_BYTES, CommandLine, Finished
from tests.trust.mutate_model import Rng, changed_bytes, changed_model, pick
from tests.trust.outcome import LINE_LENGTH, PEAK_MB, PRODUCTS, SECONDS, Facts, snapshot

NAMES = (
    "way: weights alone", "external data: in one file", "body: convolutions in an If", "body: an If in a Loop",
    "body: products in a Scan", "function: called twice", "function: with an attribute", "recurrent: LSTM",
    "layer: transposed convolution, grouped with a bias", "layer: product in batches", "graph: codes that are decoded",
    "graph: quantization that is there already", "graph: Dropout and BatchNormalization", "graph: a sequence inside",
    "graph: Shape, Gather and Reshape", "graph: Split and join", "weights: a sparse kernel", "type: float16",
    "weights as inputs: IR 3, opset 8", "graph: five outputs", "shape: free middle axis", "graph: text beside numbers",
    "type: images of uint8",
)  # fmt: skip
HOME = Path(ptq.__file__).resolve().parents[1]
PARTS = ("ptq", "passes", "calibration", "runtime")
FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')
FEWEST = 10  # executions after the first one, however little time there is
ALONE = """
import faulthandler, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({bytes}, {bytes}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from ptq.cli import main
faulthandler.enable()
faulthandler.dump_traceback_later({seconds}, exit=True)
main(sys.argv[1:], prog_name="ptq")
"""

Files = Mapping[str, bytes]


@cache
def corpus() -> tuple[Files, ...]:
    """Models that work, each with the files beside it."""
    found = []
    cases = {case.name: case for case in all_cases()}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            stage = Stage.at(Path(folder) / "stage")
            cases[name].build(stage)
            found.append({path.name: path.read_bytes() for path in sorted(stage.inputs.iterdir())})
    return tuple(found)


def _put(rng: Rng, stage: Stage) -> Files:
    files = pick(rng, corpus())
    for name, data in files.items():
        (stage.inputs / name).write_bytes(data)
    return files


def _options(rng: Rng, stage: Stage) -> None:
    """Often some options that work, and often random data, which fits any interface."""
    if rng.random() < 0.5:
        stage.options = mutate_data.good_options(rng)
    if rng.random() < 0.5:
        stage.data = None
        stage.options = [*stage.options, "--random-data"]


def model(rng: Rng, stage: Stage) -> None:
    """A model that is spoilt in the terms of ONNX."""
    files = _put(rng, stage)
    stage.model.write_bytes(changed_model(rng, files["m.onnx"], pick(rng, corpus())["m.onnx"]))
    _options(rng, stage)


def model_bytes(rng: Rng, stage: Stage) -> None:
    """A model file, or the weights beside it, with other bytes."""
    files = _put(rng, stage)
    name = pick(rng, [name for name in files if name != "d.npz"])
    (stage.inputs / name).write_bytes(changed_bytes(rng, files[name], pick(rng, corpus())["m.onnx"]))
    _options(rng, stage)


def arrays(rng: Rng, stage: Stage) -> None:
    """A spoilt .npz file, or .npy."""
    _put(rng, stage)
    with np.load(stage.inputs / "d.npz") as given:
        found = dict(given)
    if rng.random() < 0.75:
        (stage.inputs / "d.npz").write_bytes(mutate_data.changed_npz(rng, found))
    else:
        stage.data = stage.inputs / "d.npy"
        stage.data.write_bytes(mutate_data.changed_npy(rng, found[min(found)]))


def tokens(rng: Rng, stage: Stage) -> None:
    """Spoilt token ids."""
    stage.put(proto_of(IDS, {"table": random((9, 4)), "weight": random((4, 4))}))
    name = pick(rng, ("d.jsonl", "d.jsonl", "d.jsonl", "d.parquet"))
    stage.data = stage.inputs / name
    stage.data.write_bytes(mutate_data.TOKENS[name](rng))


def images(rng: Rng, stage: Stage) -> None:
    """A folder with spoilt images or labels."""
    stage.put_works()
    stage.data = stage.inputs / "images"
    stage.data.mkdir()
    for index in range(3):
        (stage.data / f"good{index}.png").write_bytes(GOOD)
    if rng.random() < 0.7:
        (stage.data / f"bad.{pick(rng, ('png', 'jpg', 'gif', 'tif', 'webp', 'ppm'))}").write_bytes(
            mutate_data.image(rng)
        )
    if rng.random() < 0.5:
        (stage.data / "labels.csv").write_bytes(mutate_data.labels(rng))


def recipes(rng: Rng, stage: Stage) -> None:
    """A spoilt recipe."""
    _put(rng, stage)
    path = stage.inputs / "r.toml"
    path.write_bytes(mutate_data.recipe(rng))
    stage.options = ["--recipe", str(path)]


def options(rng: Rng, stage: Stage) -> None:
    """Options with strange values."""
    _put(rng, stage)
    stage.options = mutate_data.odd_options(rng)
    if rng.random() < 0.2:
        images(rng, stage) if rng.random() < 0.5 else tokens(rng, stage)


AREAS: dict[Callable[[Rng, Stage], None], float] = {
    model: 0.58, model_bytes: 0.07, arrays: 0.1, tokens: 0.05, images: 0.06, recipes: 0.07, options: 0.07,
}  # fmt: skip


def build(seed: int, number: int, root: Path) -> tuple[str, Stage]:
    """The inputs of an execution, and what kind they are."""
    rng = np.random.default_rng([seed, number])
    area = list(AREAS)[int(rng.choice(len(AREAS), p=list(AREAS.values())))]
    stage = Stage.at(root)
    area(rng, stage)
    return area.__name__, stage


@dataclass(frozen=True)
class Fault:
    """What should not have happened.

    Attributes:
        kind: In a word.
        where: The innermost line of the product, or what was said: faults that agree in both are one.
        text: All of it.
    """

    kind: str
    where: str
    text: str


@dataclass
class Fuzzer:
    """Executes, judges and keeps; a context manager.

    Attributes:
        seed: Decides all inputs.
        keep: Where inputs of faults go; None keeps none.
        faults: A fault of each kind, and the numbers of the executions that had it.
        codes: How many executions ended how, by area.
    """

    seed: int
    keep: Path | None = None
    faults: dict[tuple[str, str], tuple[Fault, list[int]]] = field(default_factory=dict)
    codes: Counter[tuple[str, int | None]] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        """Start both servers."""
        with ExitStack() as stack:
            self._ptq = stack.enter_context(CommandLine())
            self._onnxruntime = stack.enter_context(CommandLine("tests.trust.opening"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop them."""
        self._stack.close()

    def execute(self, number: int) -> list[Fault]:
        """Build, run and judge once."""
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            area, stage = build(self.seed, number, Path(folder) / "stage")
            before = snapshot(stage.root)
            finished = self._ptq.run(stage.arguments, root=stage.root, limits={}, seconds=SECONDS)
            found = self._judge(stage, finished, before)
            self.codes[area, finished.code] += 1
            for fault in found:
                known = self.faults.setdefault((fault.kind, fault.where), (fault, []))[1]
                known.append(number)
                if self.keep and len(known) == 1:
                    self._write(fault, number, area, finished)
        return found

    def _judge(self, stage: Stage, finished: Finished, before: Facts) -> list[Fault]:
        after = snapshot(stage.root)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        products = {f"out/{stage.output.name}{end}" for end in PRODUCTS} if finished.code in (0, 1) else set()
        found = list(_spoken(finished))
        if changed - products and finished.code is not None:  # what is killed may leave a temporary file
            names = ", ".join(sorted(changed - products))
            found.append(Fault("left or changed", re.sub(r"[\w]{8}\.tmp", "*.tmp", names), names))
        if finished.peak_mb > PEAK_MB:
            found.append(Fault("memory", _gist(finished.stderr), f"{finished.peak_mb:.0f} MB"))
        if finished.code is None or finished.code < 0:
            found.extend(self._died(stage, finished))
        if finished.code == 0:
            found.extend(self._opened(stage))
        return found

    def _opened(self, stage: Stage) -> list[Fault]:
        """Whether the output is there and opens."""
        opened = self._onnxruntime.run([str(stage.output)], root=stage.root, limits={}, seconds=SECONDS)
        return [] if opened.code == 0 else [Fault("output does not load", _gist(opened.stdout), opened.stdout)]

    def _died(self, stage: Stage, finished: Finished) -> list[Fault]:
        """Where the product hung or crashed, and whether onnxruntime does so without it."""
        kind = "hang" if finished.code is None else f"signal {-(finished.code or 0)}"
        alone = self._onnxruntime.run([str(stage.model), "--run"], root=stage.root, limits={}, seconds=SECONDS)
        blame = "onnxruntime alone too" if alone.code is None or alone.code < 0 else "not onnxruntime alone"
        stage.output.unlink(missing_ok=True)
        code = ALONE.format(bytes=MEMORY_BYTES, seconds=SECONDS + 5)
        again = subprocess.run([sys.executable, "-c", code, *stage.arguments], cwd=stage.root / "cwd", timeout=600,
                               capture_output=True, check=False)  # fmt: skip
        text = again.stderr.decode(errors="replace")
        if finished.code is None and "Timeout" not in text:
            return []  # the machine was busy
        return [Fault(f"{kind} ({blame})", _frame(text, last=False), text)]

    def _write(self, fault: Fault, number: int, area: str, finished: Finished) -> None:
        assert self.keep
        root = self.keep.resolve() / f"{self.seed}-{number}-{re.sub(r'[^a-z]+', '-', fault.kind)}"
        if root.exists():
            return
        _, stage = build(self.seed, number, root)
        lines = f"{fault.kind}: {fault.where}", area, f"cd {root}/cwd; ptq {shlex.join(stage.arguments)}"
        said = f"exit code {finished.code}, {finished.seconds:.1f} s, {finished.peak_mb:.0f} MB\n{finished.stderr}"
        more = [] if fault.text == finished.stderr else [fault.text]
        (root / "fault.txt").write_text("\n".join([*lines, said, *more]))


def _spoken(finished: Finished) -> list[Fault]:
    """What stderr and the exit code say."""
    text = finished.stderr
    if "Traceback (most recent call last)" in finished.stdout + text:
        last = text[text.rfind("Traceback (most recent call last)") :]
        error = next((line for line in reversed(last.splitlines()) if re.match(r"[\w.]+(:|$)", line)), "?")
        return [Fault("traceback", f"{_frame(last, last=True)} {error.split(':')[0]}", text)]
    if finished.code is not None and finished.code >= 0 and finished.code not in (0, 1, 2):
        return [Fault(f"exit code {finished.code}", _gist(text), text)]
    if finished.code == 2:
        lines = text.splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return [Fault(f"{'several' if lines else 'no'} lines", _gist(text), text)]
        if len(text) > LINE_LENGTH:
            return [Fault("long line", _gist(text), text)]
    return []


def _frame(text: str, *, last: bool) -> str:
    """The innermost line of the product in a traceback."""
    frames = [(Path(path), line) for path, line in FRAME.findall(text)]
    own = [f"{path.relative_to(HOME)}:{line}" for path, line in frames
           if path.is_relative_to(HOME) and path.relative_to(HOME).parts[0] in PARTS]  # fmt: skip
    return own[-1 if last else 0] if own else "?"


def _gist(text: str) -> str:
    """What is said, without names and numbers."""
    first = (text.strip().splitlines() or [""])[0]
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d+", "_", first)[:80]


def fuzz(seconds: float, seed: int, keep: Path | None = None, first: int = 0) -> Fuzzer:
    """Execute until the time is up, and a few times at least, however busy the machine is."""
    corpus()
    with Fuzzer(seed, keep) as fuzzer:
        fuzzer.execute(first)  # which waits for the servers to stand
        end, number = time.monotonic() + seconds, first + 1
        while time.monotonic() < end or number <= first + FEWEST:
            fuzzer.execute(number)
            number += 1
    return fuzzer


def main(arguments: Sequence[str]) -> int:
    """Look for a while; the exit code says whether there were faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--first", type=int, default=0, help="number of the first execution")
    given = parser.parse_args(arguments)
    fuzzer = fuzz(given.seconds, given.seed, given.keep, given.first)
    total = sum(fuzzer.codes.values())
    print(f"{total} executions, {total / given.seconds:.1f} per second")  # noqa: T201
    for (area, code), count in sorted(fuzzer.codes.items(), key=str):
        print(f"{area}: {count} ended {code}")  # noqa: T201
    for (kind, where), (_, numbers) in sorted(fuzzer.faults.items()):
        print(f"{kind} | {where} | {len(numbers)} times, first {numbers[0]}")  # noqa: T201
    return bool(fuzzer.faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
