"""A run of the command line that faults are put into, and what may be found after them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from onnxruntime import InferenceSession, SessionOptions

from tests.builders import random
from tests.trust.cases import NET, WEIGHTS, Arrays, Stage
from tests.trust.faults import Ended, Fault, Order, Saboteur

Kind = Literal["file", "data", "huge"]
CARDS = (".card.json", ".card.md", ".bench.json")
WIDTH, DEPTH = 64, 4
PLAIN = ("--weights", "rtn", "--activations", "minmax")
"""Options of a run that touches the same files as any other, and searches for nothing meanwhile."""


@dataclass
class Scene:
    """A stage on which a run was seen twice: an older one, and the one that faults are put into.

    Attributes:
        stage: Model, data and folders.
        constants: Numbers of the product, changed so that a small model is treated as a large one.
        other: Options of the older run.
        old: What it wrote, by name.
        new: What an undisturbed run writes.
        over: What it writes over the older output: weights beside it get another name.
        under: What the older one writes over the new output, likewise.
        seen: How it went.
    """

    stage: Stage
    constants: Mapping[str, float]
    other: list[str] = field(default_factory=list)
    old: dict[str, bytes] = field(default_factory=dict)
    new: dict[str, bytes] = field(default_factory=dict)
    over: dict[str, bytes] = field(default_factory=dict)
    under: dict[str, bytes] = field(default_factory=dict)
    seen: Ended | None = None

    @property
    def output(self) -> Path:
        """The folder of the output."""
        return self.stage.output.parent

    def order(self, fault: Fault | None = None, options: Sequence[str] = (), name: str = "q.onnx") -> Order:
        """A run."""
        arguments = replace(self.stage, output=self.output / name).arguments
        return Order([*arguments, "-q", *options], str(self.stage.root), fault or Fault(), self.constants)

    def reset(self, *, old: bool) -> None:
        """Empty the folders that a run writes to; put the older output there."""
        for folder in (self.output, self.stage.root / "temp"):
            shutil.rmtree(folder)
            folder.mkdir()
        self.restore(old=old)

    def restore(self, *, old: bool) -> None:
        """Put the older output, or none, in its place and leave the rest as it is."""
        for name in self._names():
            (self.output / name).unlink(missing_ok=True)
        for name, contents in self.old.items() if old else ():
            (self.output / name).write_bytes(contents)

    def written(self) -> dict[str, bytes]:
        """What is in the output folder."""
        return {path.name: path.read_bytes() for path in self.output.iterdir() if path.is_file()}

    def strays(self) -> list[str]:
        """What a run should have taken away again."""
        folders = [self.stage.root / name for name in ("temp", "cwd")]
        found = [path for path in self.output.iterdir() if path.name not in self._names()]
        return sorted(
            str(path.relative_to(self.stage.root)) for path in [*found, *(p for f in folders for p in f.iterdir())]
        )

    def states(self) -> dict[str, str]:
        """For every file of either output: absent, old, new or broken."""
        return {name: self._state(name) for name in sorted(self._names())}

    def _names(self) -> set[str]:
        return self.new.keys() | self.over.keys() | self.old.keys() | self.under.keys()

    def _state(self, name: str) -> str:
        path = self.output / name
        if not path.exists():
            return "absent"
        contents = path.read_bytes()
        if contents in (self.old.get(name), self.under.get(name)):
            return "old"
        if contents in (self.new.get(name), self.over.get(name)):
            return "new"
        if name.endswith(".bench.json") and _is_json(contents):
            return "new"
        return f"broken ({len(contents)} bytes)"

    def inconsistencies(self, *, old: bool) -> list[str]:
        """What no instant may show: half of a model, a card of another model, nothing where something was."""
        states = self.states()
        faults = [f"{name} is {state}" for name, state in states.items() if state.startswith("broken")]
        model = states["q.onnx"]
        parts = {"old": self._whole(self.old, self.under), "new": self._whole(self.new, self.over)}.get(model, {})
        faults += [
            f"{name} is {states[name]} beside a q.onnx that is {model}"
            for name in parts
            if states[name] != model and not (name.endswith(CARDS) and states[name] == "absent")
        ]
        if not parts and any(states[name] != "absent" for name in states if name.endswith(CARDS)):
            faults.append("a card without a model")
        return faults + ["the older model is gone"] * (old and model == "absent")

    def is_new(self) -> bool:
        """Whether all of the new output is there."""
        return all(state == "new" for name, state in self.states().items() if name in self._whole(self.new, self.over))

    def _whole(self, fresh: dict[str, bytes], over: dict[str, bytes]) -> dict[str, bytes]:
        """Which of two outputs the model there belongs to."""
        path = self.output / "q.onnx"
        return over if path.exists() and path.read_bytes() == over.get("q.onnx") else fresh

    def is_old(self) -> bool:
        """Whether the older output is there and nothing else."""
        return all(state == ("old" if name in self.old else "absent") for name, state in self.states().items())


def build(kind: Kind, root: Path, saboteur: Saboteur) -> Scene:
    """Set a scene: a plain file, a model with its weights beside it, or one that is written layer by layer."""
    stage = Stage.at(root)
    scene = Scene(
        stage, {"file": {}, "data": {"ptq.delivery.deliver.INLINE_BYTES": 100}, "huge": {"INLINE_BYTES": 1000}}[kind]
    )
    stage.put_text(*(chain(DEPTH) if kind != "file" else (NET, WEIGHTS)))
    stage.options = ["--weight-only"] if kind == "huge" else list(PLAIN)
    scene.other = {"file": ["--exclude", "Gemm"], "data": ["--exclude", "h0"], "huge": ["--granularity", "block-16"]}[
        kind
    ]
    scene.old = _undisturbed(scene, saboteur, scene.other)[0]
    scene.reset(old=False)
    scene.new, scene.seen = _undisturbed(scene, saboteur)
    scene.reset(old=True)
    scene.over = _undisturbed(scene, saboteur)[0]
    scene.reset(old=False)
    _undisturbed(scene, saboteur)
    scene.under = _undisturbed(scene, saboteur, scene.other)[0]
    same = [name for name in scene.old if scene.old[name] == scene.new[name]]
    assert not same, f"the runs cannot be told apart: {same}, {sorted(scene.old)}"
    return scene


def chain(depth: int) -> tuple[str, Arrays]:
    """Products of matrices, one after the other."""
    nodes = [f"h{i} = MatMul (r{i}, w{i})\n r{i + 1} = Relu (h{i})" for i in range(depth)]
    weights = {f"w{i}": random((WIDTH, WIDTH), i) / 8 for i in range(depth)}
    body = "\n".join(nodes)
    return f"net (float[N, {WIDTH}] r0) => (float[N, {WIDTH}] r{depth}) {{\n{body}\n}}", weights


def _undisturbed(scene: Scene, saboteur: Saboteur, options: Sequence[str] = ()) -> tuple[dict[str, bytes], Ended]:
    ended = saboteur.run(scene.order(options=options))
    assert ended.code == 0, ended.stderr
    settings = SessionOptions()
    settings.log_severity_level = 4
    InferenceSession(scene.stage.output, settings, providers=["CPUExecutionProvider"])
    return scene.written(), ended


def plain(text: str) -> str:
    """Without random names, so that like is told once."""
    text = re.sub(r"(?<=\.onnx\.)[a-z0-9_]{8}(?=\.tmp)|(?<=ptq-)[a-z0-9_]{8}|(?<=\.data\.)[a-z0-9_]{8}", "*", text)
    text = re.sub(r"(?<=\.md\.)[a-z0-9_]{8}(?=\.tmp)|[0-9a-f]{64}|(?<=json\.)[a-z0-9_]{8}(?=\.tmp)", "*", text)
    return re.sub(r"(?<=profile_)[-_0-9]+|/[^' ]*/stage/", "*", text)


def _is_json(contents: bytes) -> bool:
    try:
        return bool(json.loads(contents))
    except ValueError:
        return False
