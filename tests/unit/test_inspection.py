"""`ptq inspect`: what it says of a model, and that its estimates are what quantizing then gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import ptq
from ptq import Recipe
from ptq.cli import main
from ptq.core.printable import printable
from ptq.display.inspection import count_of, reasons_of, tree_rows
from ptq.inspection import inspect_model
from ptq.passes.modules import SCOPES
from ptq.recipe import Weights
from tests.builders import attention, conv_net, feeds, model_from_text, random

HOSTILE = "a\x1b[31m\nb\u202ec[bold]d[green]"


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["inspect", *(str(argument) for argument in arguments)])


def chain(names: list[str], weights: list[str], width: int = 16) -> ir.Model:
    """Products one behind the other, with names for nodes and weights."""
    lines = [f"v{i + 1} = MatMul (v{i}, w{i})" for i in range(len(names))]
    text = f"m (float[N, {width}] v0) => (float[N, {width}] v{len(names)}) {{\n" + "\n".join(lines) + "\n}"
    model = model_from_text(text, {f"w{i}": random((width, width), i) for i in range(len(names))})
    for node, name, weight in zip(model.graph, names, weights, strict=True):
        node.name, node.inputs[1].name = name, weight  # type: ignore[union-attr]
    return model


def shown(model: ir.Model) -> list[tuple[int, str]]:
    return [(row.depth, row.name) for row in tree_rows(inspect_model(model))]


BLOCKS = [(0, "net.layer"), (1, "3 x 0..2"), (2, "2 x query..up")]


@pytest.mark.parametrize("style", ["slashes", "repeated", "weights", "scopes"])
def test_modules_are_read_from_whatever_names_the_exporter_left(style: str) -> None:
    paths = [("net", "layer", str(i), part) for i in range(3) for part in ("query", "up")]
    names, weights = [f"n{i}" for i in range(6)], [f"onnx::MatMul_{i}" for i in range(6)]
    if style == "slashes":  # /net/layer.0/query/MatMul
        names = [f"/{a}/{b}.{i}/{c}/MatMul" for a, b, i, c in paths]
    elif style == "repeated":  # /net/layer/layer.0/layer.0.query/MatMul
        names = [f"/{a}/{b}/{b}.{i}/{b}.{i}.{c}/MatMul" for a, b, i, c in paths]
    elif style == "weights":
        weights = [".".join([*path, "weight"]) for path in paths]
    model = chain(names, weights)
    if style == "scopes":
        for node, (a, b, i, c) in zip(model.graph, paths, strict=True):
            node.metadata_props[SCOPES] = str(["", a, f"{a}.{b}", f"{a}.{b}.{i}", f"{a}.{b}.{i}.{c}", "matmul"])
    assert shown(model) == BLOCKS


def test_a_module_that_differs_stands_apart_and_one_without_names_is_a_list() -> None:
    different = chain([f"/l/l.{i}/{part}/MatMul" for i in range(3) for part in ("a", "b")], [f"w{i}" for i in range(6)])
    different.graph[3].name = "/l/l.1/other/MatMul"
    assert [name for _, name in shown(different)] == ["l", "0", "2 x a..b", "1", "2 x a..other", "2", "2 x a..b"]
    assert shown(chain([""] * 3, ["p", "q", "r"])) == [(0, "v1"), (0, "v2"), (0, "v3")]


def test_layers_have_shapes_products_and_spread() -> None:
    model = conv_net()
    weight = random((12, 16, 1, 1), 4)
    weight[3] *= 20
    model.graph.initializers["w3"].const_value = ir.tensor(weight, name="w3")
    facts = inspect_model(model)
    rows = {row["op_type"] + "x".join(map(str, row["shape"])): row for row in facts["layers"]}
    wide = rows["Conv12x16x1x1"]
    reach = np.abs(weight).reshape(12, -1).max(1)
    assert wide["row_ratio"] == pytest.approx(reach.max() / np.median(reach), rel=1e-5)
    assert wide["peak_ratio"] == pytest.approx(reach.max() / np.sqrt(np.square(weight).mean()), rel=1e-4)
    assert wide["weight_range"] == (pytest.approx(weight.min()), pytest.approx(weight.max()))
    assert (wide["macs"], wide["parameters"]) == (8 * 8 * 12 * 16, 12 * 16 + 12)
    assert rows["Gemm5x12"]["macs"] == 5 * 12
    assert {row["num_bits"] for row in facts["layers"]} == {8}
    bounds_of_clip = 2
    assert facts["modules"]["parameters"] == sum(row["parameters"] for row in facts["layers"]) + bounds_of_clip


def test_data_adds_the_ranges_of_inputs() -> None:
    samples = feeds(6, 3, 16, 16)
    seen = np.concatenate([feed["x"] for feed in samples[:4]])
    (first, *_) = inspect_model(conv_net(), data=samples)["layers"]
    assert first["input_range"] == (pytest.approx(seen.min(), rel=0.01), pytest.approx(seen.max(), rel=0.01))
    assert inspect_model(conv_net())["layers"][0]["input_range"] is None


@pytest.mark.parametrize("target", ["cpu-x86", "portable", "native"])
@pytest.mark.parametrize("build", [conv_net, attention])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_size_that_was_estimated_is_the_size_that_comes(build: Any, target: str, bits: int) -> None:
    shape = (3, 16, 16) if build is conv_net else (7, 16)
    estimate = inspect_model(build(), target=target)["estimate"]["file_bytes"][f"int{bits}"]
    recipe = Recipe(target=target, weights=Weights(bits=bits), equalize=False)
    found = ptq.quantize(build(), feeds(8, *shape), recipe).delivery.num_bytes
    assert estimate == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("bits", [8, 4])
def test_tables_and_recurrent_weights_count_at_the_words_they_get(bits: int) -> None:
    text = """m (int64[N, 6] i) => (float[N, 6, 24] y) {
        e = Gather (table, i)
        s = Transpose <perm = [1, 0, 2]> (e)
        l = LSTM <hidden_size = 16> (s, wi, wr)
        q = Squeeze (l, one)
        t = Transpose <perm = [1, 0, 2]> (q)
        y = MatMul (t, w)
    }"""
    weights = {"table": random((300, 32)), "wi": random((1, 64, 32)), "wr": random((1, 64, 16)), "w": random((16, 24))}
    model = model_from_text(text, {**weights, "one": np.array([1], np.int64)})
    facts = inspect_model(model)
    assert facts["tables"] == ["table"]
    data = {"i": np.random.default_rng(0).integers(0, 300, (16, 6))}
    found = ptq.quantize(model, data, Recipe(weights=Weights(bits=bits))).delivery.num_bytes
    assert facts["estimate"]["file_bytes"][f"int{bits}"] == pytest.approx(found, rel=0.03)


def test_what_stays_float_says_why_and_depends_on_the_target(tmp_path: Path) -> None:
    text = "m (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {\n y = Conv <pads = [1, 1, 1, 1], group = 4> (x, w)\n}"
    model = model_from_text(text, {"w": random((16, 4, 3, 3))})
    (layer,) = inspect_model(model, target="cpu-x86")["layers"]
    assert layer["num_bits"] == 32
    assert "4 channels per group" in layer["reason"]
    (layer,) = inspect_model(model, target="native")["layers"]
    assert (layer["num_bits"], layer["reason"]) == (8, None)
    ir.save(model, tmp_path / "m.onnx")
    assert "y: 4 channels per group" in invoke(tmp_path / "m.onnx", "--target", "cpu-x86").output
    refused = invoke(tmp_path / "m.onnx", "--target", "gpu")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "cpu-arm" in refused.stderr


def test_json_has_everything(tmp_path: Path) -> None:
    ir.save(conv_net(), tmp_path / "m.onnx")
    facts = json.loads(invoke(tmp_path / "m.onnx", "--json").output)
    assert {"modules", "layers", "left_float", "estimate", "operators", "inputs", "target"} <= facts.keys()
    assert facts["estimate"]["seconds"] > 0
    assert facts["estimate"]["ram_bytes"] > 100e6
    assert facts["file_bytes"] == (tmp_path / "m.onnx").stat().st_size


def test_hostile_names_cannot_touch_the_terminal(tmp_path: Path) -> None:
    model = chain([f"/{HOSTILE}/x/MatMul", ""], ["p", f"{HOSTILE} weight"])
    model.graph[0].outputs[0].name = HOSTILE
    ir.save(model, tmp_path / "m.onnx")
    said = invoke(tmp_path / "m.onnx", "--plot", tmp_path / "m.svg")
    assert said.exit_code == 0, said.output
    assert not set("\x1b\u202e\x07") & set(said.output + (tmp_path / "m.svg").read_text())
    assert "a\\x1b[31m\\nb\\u202ec[bold]d" in said.output
    (tmp_path / HOSTILE).write_bytes(b"not a model")
    refused = invoke(tmp_path / HOSTILE)
    assert refused.exit_code == 2
    assert not set("\x1b\u202e\x07") & set(refused.stderr)
    assert printable("Zähler 層/é-1") == "Zähler 層/é-1"


def test_a_name_that_the_terminal_has_no_letters_for_is_no_bug(tmp_path: Path) -> None:
    ir.save(chain(["", ""], ["p", "q"]), tmp_path / "Zähler.onnx")
    said = CliRunner(charset="ascii").invoke(main, ["inspect", str(tmp_path / "Zähler.onnx")])
    assert said.exit_code == 0
    assert "Z\\xe4hler.onnx" in said.output


def test_a_picture_is_drawn_and_equal_facts_give_equal_bytes(tmp_path: Path) -> None:
    ir.save(conv_net(), tmp_path / "m.onnx")
    for name in ("a.svg", "b.svg"):
        assert invoke(tmp_path / "m.onnx", "--plot", tmp_path / name).exit_code == 0
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert b"MACs per sample" in picture
    assert b"on integers" in picture


@pytest.mark.parametrize(
    ("plot", "word"),
    [("x.png", ".svg"), ("no/x.svg", "folder"), ("m.onnx.svg", "the model"), ("x.svg", "ptq[report]")],
    ids=["kind", "folder", "model", "extra"],
)
def test_a_picture_that_cannot_be_is_refused_before_work(
    tmp_path: Path, plot: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("m.onnx.svg" if word == "the model" else "m.onnx")
    ir.save(conv_net(), path)
    if word == "ptq[report]":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = path.read_bytes()
    refused = invoke(path, "--plot", tmp_path / plot)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert word in refused.stderr
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_long_list_is_cut_and_a_pipe_is_not(tmp_path: Path) -> None:
    model = chain([""] * 70, [f"w{i}" for i in range(70)])
    for i, node in enumerate(list(model.graph)[:-1]):
        node.outputs[0].name = f"a name longer than terminals are wide, {'-' * 80} {i}"
    ir.save(model, tmp_path / "m.onnx")
    said = invoke(tmp_path / "m.onnx").output
    assert "and 10 more; --json lists all" in said
    assert f"{'-' * 80} 42 " in said


def test_words() -> None:
    assert [count_of(n) for n in (0, 7, 9999, 12345, 999_999, 2_500_000, 10**12)] == [
        "", "7", "9999", "12.3 k", "1000 k", "2.5 M", "1 T",
    ]  # fmt: skip
    assert reasons_of({f"n{i}": "why" for i in range(5)} | {"m": "other"}) == ["n0, n1, n2 and 2 more: why", "m: other"]
