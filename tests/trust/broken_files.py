"""Model files that are no models: wrong kinds of file, wrong bytes, wrong sizes, wrong versions."""

from __future__ import annotations

import io
import os
import pickle
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders import random
from tests.trust.cases import Stage, broken, each, either, odd, proto_of, small_net


class Canary:
    """Unpickling it leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m.onnx", small_net().SerializeToString())
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    """An If in an If in an If, by hand: libraries do not write what is nested too deep."""

    def field(number: int, body: bytes) -> bytes:
        size, length = len(body), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + body

    graph = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 | 0x80, 1, 5])
        graph = field(1, field(4, b"If") + field(5, attribute))
    return b"\x08\x09" + field(7, graph + field(12, field(1, b"y"))) + field(8, b"\x10\x11")


GOOD = small_net().SerializeToString()
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x08",
    "text": b"I am not a model\n",
    "html of a failed download": b"<!DOCTYPE html><html><body>404</body></html>\n" * 20,
    "a git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "zeros": bytes(1000),
    "random bytes": np.random.default_rng(0).bytes(5000),
    "half of a model": GOOD[: len(GOOD) // 2],
    "a model without its last byte": GOOD[:-1],
    "a model and a few bytes": GOOD + b"\xff\xff\xff",
    "a zip file with a model in it": zipped(),
    "an array": np.zeros(9, np.float32).tobytes(),
    "a version and nothing else": b"\x08\x09",
    "an If nested 300 deep": nested(300),
    "an If nested 5000 deep": nested(5000),
    "a length of 2^63": b"\x08\x09\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
}


@each(lambda name: broken(f"model file: {name}"), CONTENTS)
def model_of_bytes(stage: Stage, contents: bytes) -> None:
    stage.put_works()
    stage.put(contents)


@broken("model file: missing")
def missing(stage: Stage) -> None:
    stage.put_works()
    stage.model.unlink()


@broken("model file: a pickle")
def pickled(stage: Stage) -> None:
    stage.put_works()
    stage.put(pickle.dumps(Canary(stage.root / "hatched")))


@broken("model file: folder")
def folder(stage: Stage) -> None:
    missing(stage)
    stage.model.mkdir()


@broken("model file: pipe")
def pipe(stage: Stage) -> None:
    missing(stage)
    os.mkfifo(stage.model)


@broken("model file: link to a pipe")
def link_to_pipe(stage: Stage) -> None:
    missing(stage)
    os.mkfifo(stage.inputs / "pipe")
    stage.model.symlink_to("pipe")


@broken("model file: link to nothing")
def link_to_nothing(stage: Stage) -> None:
    missing(stage)
    stage.model.symlink_to("nothing")


@broken("model file: link to itself")
def link_to_itself(stage: Stage) -> None:
    missing(stage)
    stage.model.symlink_to("m.onnx")


@broken("model file: socket")
def listening(stage: Stage) -> None:
    missing(stage)
    here = Path.cwd()
    os.chdir(stage.inputs)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("m.onnx")
    os.chdir(here)


@each(lambda name: broken(f"model file: {name}", name), {"/dev/zero": "/dev/zero", "/dev/null": "/dev/null"})
def device(stage: Stage, path: str) -> None:
    stage.put_works()
    stage.model = Path(path)


@broken("model file: 2 GiB of nothing")
def sparse(stage: Stage) -> None:
    stage.put_works()
    with stage.model.open("r+b") as file:
        file.truncate(2**31)


@broken("model file: a name of 5000 characters", "xxxx")
def long_name(stage: Stage) -> None:
    stage.put_works()
    stage.model = stage.inputs / ("x" * 5000)


@broken("model file: inside of a file")
def inside_a_file(stage: Stage) -> None:
    stage.put_works()
    stage.model = stage.model / "inner.onnx"


@each(
    lambda name: broken(f"versions: {name}"),
    {"no opset": None, "opset 0": 0, "opset -1": -1, "opset 99": 99, "opset 2^62": 2**62},
)
def opset(stage: Stage, version: int | None) -> None:
    stage.put_works()
    model = small_net()
    del model.opset_import[:]
    if version is not None:
        model.opset_import.add(domain="", version=version)
    stage.put(model)


@each(lambda name: broken(f"versions: {name}"), {"IR 0": 0, "IR -3": -3, "IR 99": 99})
def ir_version(stage: Stage, version: int) -> None:
    stage.put_works()
    model = small_net()
    model.ir_version = version
    stage.put(model)


@either("versions: two opsets")
def two_opsets(stage: Stage) -> None:
    stage.put_works()
    model = small_net()
    model.opset_import.add(domain="", version=11)
    stage.put(model)


@broken("versions: Gelu in opset 17", "m.onnx", "Gelu")
def newer_than_its_opset(stage: Stage) -> None:
    stage.put_works()
    model = proto_of("net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu (x) }", {}, 17)
    model.graph.node[0].op_type = "Gelu"
    stage.put(model)


@odd("versions: LayerNormalization in opset 13, which onnxruntime has and ONNX has not")
def older_than_in_onnx(stage: Stage) -> None:
    stage.put_works()
    text = "net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { n = Conv (x, w) y = Relu (n) }"
    model = proto_of(text, {"w": random((4, 3, 3, 3), 1), "g": 1 + random((6,), 2)}, 13)
    model.graph.node[1].op_type = "LayerNormalization"
    model.graph.node[1].input.append("g")
    stage.put(model)
