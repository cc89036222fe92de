"""External data that leads elsewhere, blocks, or is not there: never read, never told, named by its tensor."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx

from tests.trust.cases import WEIGHTS, Stage, broken, each, either, proto_of, small_net, tensor_named
from tests.trust.outcome import SECRET

BYTES = WEIGHTS["conv_weight"].tobytes()
Entries = dict[str, str]


def external(tensor: onnx.TensorProto, entries: Entries) -> None:
    """Let a tensor say that its bytes lie elsewhere."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def put_external(stage: Stage, entries: Entries) -> None:
    """A model whose first weight is external, the bytes beside it, and a secret in another folder."""
    stage.put_works()
    (stage.inputs / "w.bin").write_bytes(BYTES)
    (stage.root / "elsewhere/secret.bin").write_bytes(SECRET + BYTES)
    model = small_net()
    external(tensor_named(model, "conv_weight"), entries)
    stage.put(model)


LOCATIONS: dict[str, str] = {
    "one folder up": "../elsewhere/secret.bin",
    "up behind a folder": "inner/../../elsewhere/secret.bin",
    "up behind the own folder": "./../elsewhere/secret.bin",
    "up and down again": "../in/w.bin",
    "far up": "../" * 30 + "etc/passwd",
    "up behind a folder that is not there": "nothing/../../elsewhere/secret.bin",
    "backslashes": "..\\elsewhere\\secret.bin",
    "absolute": "/etc/passwd",
    "a file URL": "file:///etc/passwd",
    "a home": "~/secret.bin",
    "a variable": "$HOME/secret.bin",
    "a device": "/dev/zero",
    "the standard input": "/dev/stdin",
    "own memory": "/proc/self/mem",
    "in-memory marker of onnxruntime": "*/_ORT_MEM_ADDR_/*",
    "missing": "nothing.bin",
    "empty": "",
    "the folder itself": ".",
    "a folder": "inner",
    "a NUL": "w.bin\0.txt",
    "a name too long": "w" * 5000,
    "the model itself": "m.onnx/",
    "a line break": "w\n.bin",
}


@each(lambda name: broken(f"external location: {name}", "conv_weight"), LOCATIONS)
def location(stage: Stage, where: str) -> None:
    put_external(stage, {"location": where})
    (stage.inputs / "inner").mkdir()


@broken("external location: absolute to the secret", "conv_weight")
def absolute(stage: Stage) -> None:
    put_external(stage, {"location": str(stage.root / "elsewhere/secret.bin")})


@broken("external location: absolute to the right file", "conv_weight")
def absolute_inside(stage: Stage) -> None:
    put_external(stage, {"location": str(stage.inputs / "w.bin")})


@broken("external location: none", "conv_weight")
def no_location(stage: Stage) -> None:
    put_external(stage, {"length": str(len(BYTES))})


@broken("external location: two", "conv_weight")
def two_locations(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin"})
    model = onnx.load(stage.model, load_external_data=False)
    tensor_named(model, "conv_weight").external_data.add(key="location", value="../elsewhere/secret.bin")
    stage.put(model)


def _symlink(stage: Stage) -> None:
    (stage.inputs / "w.bin").symlink_to("../elsewhere/secret.bin")


def _symlinked_folder(stage: Stage) -> None:
    (stage.inputs / "linked").symlink_to("../elsewhere")
    (stage.root / "elsewhere/w.bin").write_bytes(SECRET + BYTES)


def _hard_link(stage: Stage) -> None:
    os.link(stage.root / "elsewhere/secret.bin", stage.inputs / "w.bin")


def _chain(stage: Stage) -> None:
    (stage.inputs / "w.bin").symlink_to("second")
    (stage.inputs / "second").symlink_to("../elsewhere/secret.bin")


def _loop(stage: Stage) -> None:
    (stage.inputs / "w.bin").symlink_to("w.bin")


def _pipe(stage: Stage) -> None:
    os.mkfifo(stage.inputs / "w.bin")


def _linked_device(stage: Stage) -> None:
    (stage.inputs / "w.bin").symlink_to("/dev/zero")


def _huge(stage: Stage) -> None:
    with (stage.inputs / "w.bin").open("wb") as file:
        file.truncate(2**36)


@each(
    lambda name: broken(f"external file: {name}", "conv_weight"),
    {
        "a symbolic link out of the folder": ("w.bin", _symlink),
        "a symbolic link of the folder": ("linked/w.bin", _symlinked_folder),
        "two symbolic links": ("w.bin", _chain),
        "a symbolic link to itself": ("w.bin", _loop),
        "a hard link": ("w.bin", _hard_link),
        "a pipe": ("w.bin", _pipe),
        "a link to a device": ("w.bin", _linked_device),
        "64 GiB of nothing": ("w.bin", _huge),
    },
)
def special_file(stage: Stage, given: tuple[str, Callable[[Stage], None]]) -> None:
    where, make = given
    put_external(stage, {"location": where})
    (stage.inputs / "w.bin").unlink()
    make(stage)


SIZES: dict[str, Entries] = {
    "length past the end": {"length": "100000"},
    "length of 2^62": {"length": str(2**62)},
    "length of 2^70": {"length": str(2**70)},
    "length -1": {"length": "-1"},
    "length abc": {"length": "abc"},
    "length 864.0": {"length": "864.0"},
    "length empty": {"length": ""},
    "length with digits of another script": {"length": "٨٦٤"},
    "length of 5000 digits": {"length": "9" * 5000},
    "length 40": {"length": "40"},
    "length one more than the tensor": {"length": "865"},
    "length 0": {"length": "0"},
    "offset past the end": {"offset": "100000"},
    "offset that leaves too little": {"offset": "4"},
    "offset of 2^62": {"offset": str(2**62)},
    "offset of 2^64": {"offset": str(2**64)},
    "offset -864": {"offset": "-864"},
    "offset abc": {"offset": "abc"},
    "offset 1e0": {"offset": "1e0"},
    "offset and length that overflow": {"offset": str(2**63 - 1), "length": str(2**63 - 1)},
    "unknown key": {"frobnication": "1"},
    "key that is an attribute of Python": {"__class__": "x"},
    "key basepath": {"basepath": "../elsewhere"},
}


@each(lambda name: broken(f"external size: {name}", "conv_weight"), SIZES)
def sizes(stage: Stage, entries: Entries) -> None:
    put_external(stage, {"location": "w.bin", **entries})


@broken("external size: a file too short", "conv_weight")
def short(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin"})
    (stage.inputs / "w.bin").write_bytes(BYTES[:-4])


@broken("external size: an empty file", "conv_weight")
def empty(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin"})
    (stage.inputs / "w.bin").write_bytes(b"")


@broken("external size: a tensor of 2^40 rows", "conv_weight")
def giant(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin"})
    model = onnx.load(stage.model, load_external_data=False)
    tensor_named(model, "conv_weight").dims[0] = 2**40
    stage.put(model)


@broken("external numbers: NaN", "conv_weight")
def not_a_number(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin"})
    (stage.inputs / "w.bin").write_bytes(np.full(216, np.nan, np.float32).tobytes())


@broken("external: bytes inside as well", "conv_weight")
def both(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin"})
    model = onnx.load(stage.model, load_external_data=False)
    tensor_named(model, "conv_weight").raw_data = BYTES
    stage.put(model)


CONV = "y = Conv (x, inner_weight)"
OUTER = "net (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y)"
PLACES: dict[str, str] = {
    "a constant": f"{OUTER} {{ inner_weight = Constant <value = float {{0}}> () {CONV} }}",
    "a branch's initializer": f"""{OUTER} {{ y = If (chosen) <
        then_branch = one () => (float[N, 8, 6, 6] p) {{ p = Conv (x, inner_weight) }},
        else_branch = two () => (float[N, 8, 6, 6] q) {{ q = Conv (x, inner_weight) }}> }}""",
    "a branch's constant": f"""{OUTER} {{ y = If (chosen) <
        then_branch = one () => (float[N, 8, 6, 6] p)
            {{ inner_weight = Constant <value = float {{0}}> () p = Conv (x, inner_weight) }},
        else_branch = two () => (float[N, 8, 6, 6] q)
            {{ v = Constant <value = float {{0}}> () q = Conv (x, v) }}> }}""",
    "a function's constant": f"""{OUTER} {{ y = local.conv (x) }}
        <domain: "local", opset_import: ["" : 17]>
        conv (a) => (b) {{ inner_weight = Constant <value = float {{0}}> () b = Conv (a, inner_weight) }}""",
}


@each(
    lambda name: broken(f"external data of {name}", "inner_weight", "m.onnx"),
    {f"{place}, {kind}": (place, where) for place in PLACES for kind, where in
     {"one folder up": "../elsewhere/secret.bin", "a link": "linked.bin", "missing": "nothing.bin"}.items()},
)  # fmt: skip
def elsewhere(stage: Stage, given: tuple[str, str]) -> None:
    place, where = given
    put_external(stage, {"location": "w.bin"})
    (stage.inputs / "linked.bin").symlink_to("../elsewhere/secret.bin")
    model = proto_of(PLACES[place], {})
    inner = onnx.numpy_helper.from_array(WEIGHTS["conv_weight"], "inner_weight")
    external(inner, {"location": where})
    top = model.graph.node[0]
    if top.op_type == "If":
        model.graph.initializer.append(onnx.TensorProto(name="chosen", data_type=9, int32_data=[1]))
    branches = [attribute.g for attribute in top.attribute if attribute.HasField("g")]
    if place == "a branch's initializer":
        for branch in branches:
            branch.initializer.append(inner)
    nodes = [*model.graph.node, *(node for part in [*branches, *model.functions] for node in part.node)]
    for node in nodes:
        if node.op_type == "Constant":
            node.attribute[0].t.CopyFrom(inner)
    stage.put(model)


@either("external location: two dots in the name", "conv_weight")
def dots(stage: Stage) -> None:
    put_external(stage, {"location": "w..bin"})
    (stage.inputs / "w.bin").rename(stage.inputs / "w..bin")


@either("external size: a wrong checksum", "conv_weight")
def checksum(stage: Stage) -> None:
    put_external(stage, {"location": "w.bin", "checksum": "0" * 40})
