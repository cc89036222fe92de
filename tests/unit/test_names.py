"""Names of layers: the module that a person knows comes first, and selects, wherever a node's name does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ptq import Recipe, quantize
from ptq.analysis.report import QuantReport
from ptq.cli import main
from ptq.core.errors import RecipeError
from ptq.passes.modules import MODULE, Handles
from ptq.recipe import LayerRule
from ptq.recipe.text import parse_rule
from tests.builders import feeds, model_from_text, random

NODES = {"a": "/stem/conv/Conv", "b": "/stem/act/Relu", "c": "/body/0/conv/Conv", "y": "/body/1/conv/Conv"}


def net() -> ir.Model:
    """Three convolutions in modules stem.conv, body.0.conv and body.1.conv."""
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, v)
        y = Conv <pads = [1, 1, 1, 1]> (c, w)
    }"""
    weights = {"u": random((8, 3, 3, 3), 1), "v": random((8, 8, 3, 3), 2), "w": random((4, 8, 3, 3), 3)}
    model = model_from_text(text, weights)
    for node in model.graph:
        node.name = NODES[str(node.outputs[0].name)]
    return model


def made(**fields: Any) -> QuantReport:
    return quantize(net(), feeds(16, 3, 8, 8), Recipe(**fields)).report


def layers(report: QuantReport) -> set[str]:
    return {row.name for row in report.layers}


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("body", {"a"}),
        ("body.0", {"a", "y"}),
        ("body.0.conv", {"a", "y"}),
        ("body.*", {"a"}),
        ("*.conv", set()),
        ("re:body.[01].conv", {"a"}),
        ("c", {"a", "y"}),
        ("/body/1/conv/Conv", {"a", "c"}),
    ],
)
def test_modules_and_nodes_are_excluded_alike(pattern: str, left: set[str]) -> None:
    if left:
        assert layers(made(exclude=(pattern,))) == left
    assert layers(made(only=(pattern,))) == {"a", "c", "y"} - left


def test_later_rules_win() -> None:
    rules = (parse_rule("*:skip=true"), parse_rule("body:skip=false"), parse_rule("body.1:skip"))
    assert layers(made(layers=rules)) == {"c"}
    bits = made(layers=(LayerRule("body", bits=4), LayerRule("body.1", bits=6)))
    assert {row.name: row.num_bits for row in bits.layers} == {"a": 8, "c": 4, "y": 6}
    assert layers(made(layers=(LayerRule("a", skip=False),), exclude=("a",))) == {"c", "y"}  # --exclude is a promise


def test_a_name_that_matches_nothing_lists_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'body.3.conv' matches no node; the nearest names are body.\d.conv"):
        made(exclude=("body.3.conv",))
    with pytest.raises(RecipeError, match=r"'\$' matches no node; expected a module, a node name or one of the types"):
        made(only=("$",))


def test_card_and_terminal_put_the_module_first(tmp_path: Path) -> None:
    ir.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in feeds(16, 3, 8, 8)]))
    given = ["quantize", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "-o", tmp_path / "q.onnx"]
    done = CliRunner().invoke(main, [*map(str, given), "--exclude", "stem.conv"])
    assert done.exit_code == 0
    assert "stem.conv (a): excluded by 'stem.conv'" in done.output
    card = json.loads((tmp_path / "q.onnx.card.json").read_text())
    assert card["modules"] == {"a": "stem.conv", "c": "body.0.conv", "y": "body.1.conv"}
    text = (tmp_path / "q.onnx.card.md").read_text()
    assert "`body.0.conv (c)`" in text
    assert "`stem.conv (a)`" in text
    looked = ["diff", tmp_path / "m.onnx", tmp_path / "q.onnx", "--data", tmp_path / "d.npz"]
    assert "body.0.conv (c)" in CliRunner().invoke(main, [str(each) for each in looked]).output
    assert MODULE not in (tmp_path / "q.onnx").read_bytes().decode(errors="replace")


def test_a_handle_means_one_layer() -> None:
    handles = Handles({"a": "block.proj", "b": "block.mlp", "c": "block.mlp", "d": ""})
    assert [handles.of(name) for name in "abcdx"] == ["block.proj", "b", "c", "d", "x"]
