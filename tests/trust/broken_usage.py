"""Outputs that cannot or must not be written, recipes and options that say nothing sensible."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import ml_dtypes

from tests.builders import random
from tests.trust.broken_external import external
from tests.trust.broken_images import folder as image_folder
from tests.trust.cases import WEIGHTS, Stage, broken, each, half_a_library, small_net, tensor_named


def _link(stage: Stage, target: str) -> Path:
    path = stage.root / "out/link.onnx"
    path.symlink_to(target)
    return path


def _hard_link(stage: Stage) -> Path:
    path = stage.root / "out/hard.onnx"
    os.link(stage.model, path)
    return path


def _pipe(stage: Stage) -> Path:
    path = stage.root / "out/pipe.onnx"
    os.mkfifo(path)
    return path


def _linked_folder(stage: Stage) -> Path:
    (stage.root / "out/back").symlink_to("../in")
    return stage.root / "out/back/m.onnx"


OUTPUTS: dict[str, Callable[[Stage], Path]] = {
    "a folder": lambda stage: stage.root / "out",
    "the working directory": lambda stage: Path(),
    "in a missing folder": lambda stage: stage.root / "out/missing/q.onnx",
    "in a file": lambda stage: stage.model / "q.onnx",
    "in a file that is not there": lambda stage: stage.root / "out/missing.onnx/q.onnx",
    "in a folder where nobody writes": lambda stage: Path("/proc/self/q.onnx"),
    "a name of 300 characters": lambda stage: stage.root / "out" / ("q" * 300),
    "a name whose card has no name": lambda stage: stage.root / "out" / ("q" * 250),
    "a path of 6000 characters": lambda stage: stage.root / "out" / ("q/" * 3000),
    "the model": lambda stage: stage.model,
    "the model by another path": lambda stage: stage.root / "out/../in/m.onnx",
    "the model through a link": lambda stage: _link(stage, "../in/m.onnx"),
    "the model through a linked folder": _linked_folder,
    "the model by a hard link": _hard_link,
    "the data": lambda stage: stage.inputs / "d.npz",
    "the data through a link": lambda stage: _link(stage, "../in/d.npz"),
    "a pipe": _pipe,
}


@each(lambda name: broken(f"output: {name}", "cannot write"), OUTPUTS)
def output(stage: Stage, where: Callable[[Stage], Path]) -> None:
    stage.put_works()
    stage.output = where(stage)


@each(
    lambda name: broken(f"output: {name}", "w.bin", "q.onnx"),
    {
        "the external data": lambda stage: stage.inputs / "w.bin",
        "the external data through a link": lambda stage: _link(stage, "../in/w.bin"),
    },
)
def external_data(stage: Stage, where: Callable[[Stage], Path]) -> None:
    stage.put_works()
    model = small_net()
    external(tensor_named(model, "conv_weight"), {"location": "w.bin"})
    (stage.inputs / "w.bin").write_bytes(WEIGHTS["conv_weight"].tobytes())
    stage.put(model)
    stage.output = where(stage)


@broken("output: an image of the calibration set", "good0.png")
def image(stage: Stage) -> None:
    stage.output = image_folder(stage) / "good0.png"


@broken("output: the labels of the calibration set", "labels.csv")
def labels(stage: Stage) -> None:
    stage.output = image_folder(stage) / "labels.csv"
    stage.output.write_text("file,label\ngood0.png,1\n")


@broken("output: the evaluation set", "e.npz")
def evaluation(stage: Stage) -> None:
    stage.put_works()
    stage.output = stage.inputs / "e.npz"
    stage.output.write_bytes((stage.inputs / "d.npz").read_bytes())
    stage.options = ["--eval-data", str(stage.output)]


@broken("output: the recipe", "r.toml")
def recipe_file(stage: Stage) -> None:
    stage.put_works()
    stage.output = stage.inputs / "r.toml"
    stage.output.write_text("samples = 9\n")
    stage.options = ["--recipe", str(stage.output)]


@broken("output: its card is the data", "d.npz", "card")
def card(stage: Stage) -> None:
    stage.put_works()
    stage.output = stage.inputs / "q.onnx"
    rows = '{"x": [1, 2, 3, 4, 5, 6, 7, 8, 9]}\n' * 12
    stage.put_text("net (float[N, 9] x) => (float[N, 4] y) { y = MatMul (x, w) }", {"w": random((9, 4))})
    (stage.inputs / "card.jsonl").write_text(rows)
    stage.data = stage.inputs / "d.jsonl"
    stage.data.symlink_to("q.onnx.card.json")
    (stage.inputs / "q.onnx.card.json").write_text(rows)


@each(lambda name: broken(f"output: a disk that is full at {name}", "q.onnx", "No space", "too large"),
      {"the first byte": 0, "1000 bytes": 1000, "2500 bytes": 2500})  # fmt: skip
def full(stage: Stage, limit: int) -> None:
    stage.put_works()
    stage.limits = {"fsize": limit}


@broken("output: a full disk and an older model", "q.onnx", "too large")
def older(stage: Stage) -> None:
    full(stage, 1000)
    stage.output.write_bytes(b"older")
    (stage.root / "out/q.onnx.card.json").write_bytes(b"older")


def locked_folder(stage: Stage) -> None:
    stage.put_works()
    (stage.root / "out").chmod(stat.S_IRUSR | stat.S_IXUSR)


def locked_model(stage: Stage) -> None:
    stage.put_works()
    stage.model.chmod(0)


def locked_data(stage: Stage) -> None:
    stage.put_works()
    (stage.inputs / "d.npz").chmod(0)


if os.geteuid():  # nothing is locked for root
    broken("output: a locked folder", "q.onnx")(locked_folder)
    broken("model file: locked")(locked_model)
    broken("data file: locked", "d.npz")(locked_data)

RECIPES: dict[str, str | bytes] = {
    "no TOML": "= broken",
    "JSON": '{"samples": 9}',
    "bytes": b"\xff\xfe\x00",
    "an unknown key": "wieghts = 1",
    "an unknown key inside": "[weights]\nnum_bits = 8",
    "a word for a number": 'samples = "many"',
    "a fraction for a number": "samples = 1.5",
    "true for a number": "samples = true",
    "no samples": "samples = 0",
    "-1 samples": "samples = -1",
    "a number for a table": "weights = 3",
    "a table for a word": "[target]\nname = 1",
    "an unknown target": 'target = "toaster"',
    "an unknown observer": 'activations = "best"',
    "an unknown method": '[weights]\nmethod = "magic"',
    "9 bits": "[weights]\nbits = 9",
    "1 bit": "[weights]\nbits = 1",
    "0 activation bits": "activation_bits = 0",
    "a goal that is NaN": "[goals]\nmin_sqnr_db = nan",
    "a goal of 200 %": "[goals]\nmin_agreement = 2.0",
    "a negative ratio": "[goals]\nmax_latency_ratio = -1.0",
    "a key twice": "samples = 1\nsamples = 2",
    "a pattern that nothing matches": 'exclude = ["nothing_like_it"]',
    "a broken pattern": 'exclude = ["re:("]',
    "a layer rule without a match": "[[layers]]\nbits = 4",
    "5000 brackets": "samples = " + "[" * 5000,
}


@each(lambda name: broken(f"recipe: {name}", "r.toml", "exclude"), RECIPES)
def recipe(stage: Stage, contents: str | bytes) -> None:
    stage.put_works()
    path = stage.inputs / "r.toml"
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    stage.options = ["--recipe", str(path)]


@each(
    lambda name: broken(f"recipe file: {name}", "r.toml"),
    {
        "missing": lambda path: None,
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    },
)
def recipe_kind(stage: Stage, make: Callable[[Path], object]) -> None:
    stage.put_works()
    make(stage.inputs / "r.toml")
    stage.options = ["--recipe", str(stage.inputs / "r.toml")]


PLANS: dict[str, str | bytes] = {
    "nothing": "",
    "no JSON": "layers = 4",
    "half a file": '{"layers": {"a": 4',
    "bytes": b"\xff\xfe\x00",
    "a list": "[4]",
    "an unknown key": '{"layers": {}, "bits": 4}',
    "no table of layers": '{"layers": [4]}',
    "an unknown layer": '{"layers": {"nothing_like_it": 4}}',
    "a layer twice": '{"layers": {"a": 4, "a": 8}}',
    "1 bit": '{"layers": {"a": 1}}',
    "9 bits": '{"layers": {"a": 9}}',
    "2^70 bits": f'{{"layers": {{"a": {2**70}}}}}',
    "a fraction": '{"layers": {"a": 4.5}}',
    "NaN": '{"layers": {"a": NaN}}',
    "true": '{"layers": {"a": true}}',
    "another word": '{"layers": {"a": "double"}}',
    "no features": '{"layers": {"a": []}}',
    "too few features": '{"layers": {"a": [4, 4]}}',
    "a word for a feature": '{"layers": {"a": [4, 4, 4, 4, 4, 4, 4, "float"]}}',
    "5000 brackets": '{"layers": ' + "[" * 5000,
    "5000 digits": '{"layers": {"a": ' + "9" * 5000 + "}}",
}


def _plan_beside(stage: Stage) -> Path:
    stage.put_works()
    (stage.inputs / "r.toml").write_text('bit_plan = "plan.json"\n')
    stage.options = ["--recipe", str(stage.inputs / "r.toml")]
    return stage.inputs / "plan.json"


@each(lambda name: broken(f"bit plan: {name}", "plan", "bit_plan"), PLANS)
def bit_plan(stage: Stage, contents: str | bytes) -> None:
    _plan_beside(stage).write_bytes(contents if isinstance(contents, bytes) else contents.encode())


@each(
    lambda name: broken(f"bit plan file: {name}", "plan.json"),
    {
        "missing": lambda path: None,
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    },
)
def bit_plan_kind(stage: Stage, make: Callable[[Path], object]) -> None:
    make(_plan_beside(stage))


@each(
    lambda name: broken(f"bit plan: {name}", "outside the recipe's folder"),
    {"in another folder": "../out/plan.json", "of the machine": "/etc/hostname"},
)
def bit_plan_outside(stage: Stage, name: str) -> None:
    (stage.root / "out/plan.json").write_text('{"layers": {"a": 4}}')
    _plan_beside(stage).with_name("r.toml").write_text(f'bit_plan = "{name}"\n')


@broken("bit plan: a link out of the recipe's folder", "outside the recipe's folder")
def bit_plan_linked(stage: Stage) -> None:
    (stage.root / "out/plan.json").write_text('{"layers": {"a": 4}}')
    _plan_beside(stage).symlink_to("../out/plan.json")


@broken("output: the bit plan", "plan.json")
def bit_plan_as_output(stage: Stage) -> None:
    stage.output = _plan_beside(stage)
    stage.output.write_text('{"layers": {"a": 4}}')


OPTIONS: tuple[str, ...] = (
    "--target toaster",
    "--activations best",
    "--activations ../best",
    "--weights magic",
    "--bits 1",
    "--bits 9",
    "--bits eight",
    "--bits 2**70",
    "--activation-bits 99",
    "--granularity block-7",
    "--granularity block-32",
    "--split sometimes",
    "--extra-macs much",
    "--extra-macs -5%",
    "--extra-macs nan",
    "--extra-macs inf",
    "--max-macs much",
    "--max-macs 0",
    "--max-macs nan",
    "--max-macs 80%",
    "--exclude nothing_like_it",
    "--exclude re:(",
    "--layer nothing:bits=4",
    "--layer Conv",
    "--layer Conv:bits",
    "--layer Conv:bits=99",
    "--layer Conv:bits=x",
    "--layer Conv:frobnication=1",
    "--layer Conv:method=magic",
    "--layer re:(:bits=4",
    "--samples 0",
    "--samples -3",
    "--samples 1e3",
    "--seed x",
    "--min-sqnr-db nan",
    "--min-sqnr-db high",
    "--min-agreement 2",
    "--max-drop -1",
    "--max-drop nan",
    "--max-latency-ratio -1",
    "--custom-ops missing.so",
    "--metric no.such:thing",
    "--metric os",
    "--metric :",
    "--metric os:nothing",
    "--eval-data missing.npz",
    "--random-data",
    "--frobnicate",
    "--json=x",
)


def _words(text: str) -> tuple[str, ...]:
    """An error of an option names it, its value, or the key that it stands for."""
    option, *values = text.split("=", maxsplit=1)[0].split()
    keys = {"--extra-macs": "extra_macs", "--max-macs": "max_macs", "--layer": "layers", "--granularity": "per block"}
    return (option, *values, *(keys[each] for each in (option,) if each in keys))


@each(lambda name: broken(f"option: {name}", *_words(name)),
      {text: text.split() for text in OPTIONS})  # fmt: skip
def option(stage: Stage, given: list[str]) -> None:
    stage.put_works()
    stage.options = given


@each(
    lambda name: broken(f"option: {name}", "--custom-ops", "bad.so", "_ml_dtypes_ext"),
    {
        "a library that is text": lambda path: path.write_text("hello"),
        "a library that is empty": lambda path: path.write_bytes(b""),
        "a library that is a pipe": os.mkfifo,
        "a library that is a folder": lambda path: path.mkdir(),
        "a library that is a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a library of no operators": lambda path: path.symlink_to(ml_dtypes._ml_dtypes_ext.__file__),
    },
)
def library(stage: Stage, make: Callable[[Path], object]) -> None:
    stage.put_works()
    path = stage.inputs / "bad.so"
    make(path)
    stage.options = ["--custom-ops", str(path)]


@broken("crash: half of an operator library", "onnxruntime crashes on the model or in an operator library")
def _half_a_library(stage: Stage) -> None:
    """The system maps it as if it were whole, and what it then reads lies behind the end of the file."""
    stage.put_works()
    path = stage.inputs / "half.so"
    path.write_bytes(half_a_library())
    stage.options = ["--custom-ops", str(path)]


@broken("option: neither data nor --random-data", "--data")
def no_data(stage: Stage) -> None:
    stage.put_works()
    stage.data = None


@broken("option: random data of seed -1", "seed")
def seed(stage: Stage) -> None:
    stage.put_works()
    stage.data = None
    stage.options = ["--random-data", "--seed", "-1"]


@broken("option: two models", "extra")
def two_models(stage: Stage) -> None:
    stage.put_works()
    stage.options = ["extra.onnx"]
