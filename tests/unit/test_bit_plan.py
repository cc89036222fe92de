"""Word lengths from a plan beside the recipe: by layer and by output feature, from Python and the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq import Goals, Recipe, quantize
from ptq.allocation import BitPlan, Greedy
from ptq.allocation.bit_plan import LayerBits
from ptq.calibration.observers import Dynamic
from ptq.cli import main
from ptq.core.encoding import IntegerWeight
from ptq.core.errors import RecipeError, UnsupportedModelError
from ptq.core.family import members, tag_of
from ptq.passes.lifting import weights_of
from ptq.passes.linear import constant
from ptq.recipe import LayerRule, Weights
from ptq.recipe.toml import load_recipe, recipe_from, recipe_to, recipe_toml
from ptq.sensitivity.table import FLOAT, SensitivityTable, at_other_bits
from ptq.streaming.solve import require_streamable
from ptq.weights import Gpfq, Gptq, Pot, Rtn, WeightMethod
from tests.builders import attention, conv_net, feeds, model_from_text, random

DATA = feeds(24, 3, 16, 16)
ROWS = (2, 3, 4, 5, 6, 7, 8, 2)


def recipe(plan: Mapping[str, LayerBits], **fields: Any) -> Recipe:
    weights = fields.pop("weights", Weights(Rtn(), bits=4))
    return Recipe(target="cpu-x86", weights=weights, bit_plan=BitPlan(plan), accept_poor=True, **fields)


def codes_of(model: bytes | None, layer: str) -> NDArray[np.int64]:
    """Codes of a layer of a delivered model. Shape [features, inputs]."""
    weight = weights_of(ir.from_proto(onnx.ModelProto.FromString(model)))[layer]
    assert isinstance(weight, IntegerWeight)
    return weight.codes.astype(np.int64)


def lengths(model: bytes | None, layer: str) -> list[int]:
    """Word length of each output feature, whose largest weight has the largest code where ranges cover all weights."""
    return [int(most).bit_length() + 1 for most in np.abs(codes_of(model, layer)).max(1)]


# by output feature


@pytest.mark.parametrize("weight_only", [False, True])
def test_every_output_feature_is_stored_with_its_own_word_length(weight_only: bool) -> None:
    result = quantize(conv_net(), DATA, recipe({"c": ROWS}, weight_only=weight_only))
    assert lengths(result.delivery.data, "c") == list(ROWS)
    assert lengths(result.delivery.data, "d") == [4] * 12, "the plan says nothing of it"
    row = next(row for row in result.report.layers if row.name == "c")
    assert (row.num_bits, row.points) == (2, "2 to 8 bits by feature")


ANY_LENGTHS = [member() for member in members(WeightMethod) if member is not Pot]


@pytest.mark.parametrize("method", ANY_LENGTHS, ids=lambda method: tag_of(type(method)))
def test_any_method_takes_word_lengths_by_feature(method: WeightMethod) -> None:
    bits = (2, 2, 2, 3, 5, 6, 8, 8)
    result = quantize(conv_net(), DATA, recipe({"c": bits}, weights=Weights(method, 4)))
    assert not result.report.proof.kernels.fallbacks
    codes, half = codes_of(result.delivery.data, "c"), 1 << (np.array(bits)[:, None] - 1)
    assert ((-half <= codes) & (codes < half)).all()
    assert (np.abs(codes[3:]).max(1) > 2).all()


@pytest.mark.parametrize("method", [Pot(), Gpfq(alphabet="paper")], ids=lambda method: tag_of(type(method)))
def test_a_method_with_words_of_one_length_is_refused(method: WeightMethod) -> None:
    with pytest.raises(RecipeError, match=f"{tag_of(type(method))} has words of one length in a layer; give 'c' one"):
        quantize(conv_net(), DATA, recipe({"c": (2, 4) * 4}, weights=Weights(method, 4)))
    assert quantize(conv_net(), DATA, recipe({"c": (3,) * 8}, weights=Weights(method, 4))).report.layers[1].name == "c"


@pytest.mark.parametrize("activations", [None, Dynamic()])
@pytest.mark.parametrize("target", ["cpu-x86", "portable", "native"])
def test_products_take_word_lengths_by_feature(activations: Dynamic | None, target: str) -> None:
    asked = recipe({"q": (2, 8) * 8}, weights=Weights(Gptq(), 4))
    asked = replace(asked, target=target, activations=activations or asked.activations)
    row = quantize(attention(), feeds(16, 7, 16), asked).report.layers[0]
    assert (row.name, row.num_bits, row.points) == ("q", 2, "up to 4 points in 8 of 16 features")


def wide() -> ir.Model:
    """Convolutions with features of very different reach behind each other, as pruned networks have them."""
    text = """
    net (float[N, 3, 8, 8] x) => (float[N, 48, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        b = Relu (a)
        y = Conv <pads = [1, 1, 1, 1]> (b, v)
    }"""
    spread = np.exp(np.random.default_rng(0).normal(0, 1.5, (48, 1, 1, 1))).astype(np.float32)
    return model_from_text(text, {"u": random((48, 3, 3, 3), 1) * spread, "v": random((48, 48, 3, 3), 2) * spread})


@dataclass(frozen=True)
class Cells:
    """A cost of the user's own: a multiplier of words of b bits has b^2 cells.

    Attributes:
        sizes: Layer -> features and inputs.
    """

    sizes: Mapping[str, tuple[int, int]]
    unit: ClassVar[str] = "cells"

    def of(self, layer: str, bits: LayerBits) -> float:
        features, inputs = self.sizes[layer]
        rows = bits if isinstance(bits, tuple) else (bits,) * features
        return float(inputs * sum(each**2 for each in rows))


def by_energy(weights: Mapping[str, NDArray[np.float32]]) -> SensitivityTable:
    """What words of each length would do if every feature's error counted as much as any other's."""
    rows = {}
    for name, weight in weights.items():
        matrix = weight.reshape(len(weight), -1).astype(float)
        rows[name] = at_other_bits(matrix.shape[1] * np.square(np.abs(matrix).max(1) / 7) / 12, 4, range(2, 9))
    return SensitivityTable.of_rows(rows, tuple(range(2, 9)))


def test_an_allocator_with_a_cost_of_its_own_beats_words_of_one_length(tmp_path: Path) -> None:
    model = wide()
    weights = {name: constant(model.graph.initializers[key]) for name, key in (("a", "u"), ("y", "v"))}
    arrays = {name: weight for name, weight in weights.items() if weight is not None}
    cost = Cells({name: (len(weight), weight[0].size) for name, weight in arrays.items()})
    limit = sum(cost.of(name, 4) for name in arrays)
    plan = Greedy().allocate(by_energy(arrays), cost, limit)
    assert sum(cost.of(name, bits) for name, bits in plan.layers.items()) <= limit
    assert plan.has_rows
    plan.save(tmp_path / "plan.json")
    data, base = feeds(24, 3, 8, 8), Recipe(target="cpu-x86", weights=Weights(Rtn(), bits=4), accept_poor=True)
    uniform = quantize(model, data, base)
    planned = quantize(model, data, replace(base, bit_plan=BitPlan.load(tmp_path / "plan.json")))
    for name, bits in plan.layers.items():
        assert lengths(planned.delivery.data, name) == list(bits)  # type: ignore[arg-type]
    assert planned.report.proof.comparison.sqnr_db > uniform.report.proof.comparison.sqnr_db + 3


def test_shorter_words_in_some_features_make_the_file_smaller() -> None:
    data, plan = feeds(24, 3, 8, 8), {"y": (2,) * 16 + (4,) * 32}
    uniform, planned = (
        quantize(wide(), data, Recipe(target="cpu-x86", weights=Weights(bits=4), bit_plan=each))
        for each in (None, BitPlan(plan))
    )
    saved = 16 * 48 * 9 * 2 / 8
    assert uniform.delivery.num_bytes - planned.delivery.num_bytes > saved - 1200  # what joins them takes some room
    assert planned.delivery.num_bytes < uniform.delivery.num_bytes


# by layer


def test_a_plan_by_layer_makes_what_rules_make() -> None:
    rules = (LayerRule("c", bits=3), LayerRule("d", bits=8), LayerRule("y", skip=True))
    weights = Weights(Gptq(), 4, first_last_bits=8)
    ruled = quantize(conv_net(), DATA, Recipe(target="cpu-x86", weights=weights, layers=rules))
    planned = quantize(conv_net(), DATA, recipe({"c": 3, "d": 8, "y": FLOAT}, weights=weights))
    assert planned.delivery.data == ruled.delivery.data
    assert [row.num_bits for row in planned.report.layers] == [8, 3, 8]


def test_short_words_of_a_plan_are_packed_like_any_others() -> None:
    base = Recipe(target="cpu-x86")
    ruled = quantize(conv_net(), DATA, replace(base, layers=(LayerRule("c", bits=3),)))
    planned = quantize(conv_net(), DATA, replace(base, bit_plan=BitPlan({"c": 3})))
    assert planned.delivery.data == ruled.delivery.data


def test_a_plan_has_the_last_word_on_bits_and_no_other() -> None:
    rules = (LayerRule("c", method=Rtn("mse"), bits=8),)
    rows = quantize(conv_net(), DATA, recipe({"c": 3}, weights=Weights(Gptq(), 4), layers=rules)).report.layers
    assert [(row.name, row.num_bits, row.method) for row in rows][1] == ("c", 3, "rtn")
    assert [row.num_bits for row in rows] == [4, 3, 4, 4]


def test_equal_bits_for_every_feature_are_one_word_length() -> None:
    whole, each = (quantize(conv_net(), DATA, recipe({"c": bits})) for bits in (3, (3,) * 8))
    assert each.delivery.data == whole.delivery.data


def test_without_a_plan_a_recipe_says_nothing_of_one() -> None:
    assert "bit_plan" not in recipe_to(Recipe())


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        ({"nothing": 4}, "no layer 'nothing'; its layers are n, c, d"),
        ({"r": FLOAT}, "no layer 'r'"),
        ({"c": (4,) * 7}, "layer 'c' has 8 output features; the plan has bits for 7"),
    ],
)
def test_a_plan_for_another_model_is_refused_by_name(plan: Mapping[str, LayerBits], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        quantize(conv_net(), DATA, recipe(plan))


def test_what_does_not_go_together_is_refused() -> None:
    plan = BitPlan({"c": ROWS})
    with pytest.raises(RecipeError, match="leave out --goal"):
        Recipe(bit_plan=BitPlan({"c": 4}), search=True, goals=Goals(min_sqnr_db=20))
    with pytest.raises(RecipeError, match="extra_macs and a bit_plan by output feature"):
        Recipe(bit_plan=plan, weights=Weights(Gptq(), 4, extra_macs=0.1))
    with pytest.raises(RecipeError, match="scales per block and a bit_plan by output feature"):
        Recipe(bit_plan=plan, weights=Weights(bits=4, granularity="block-32"), weight_only=True)
    assert Recipe(bit_plan=BitPlan({"c": 4}), weights=Weights(bits=4, granularity="block-32"), weight_only=True)
    with pytest.raises(UnsupportedModelError, match="bits by layer"):
        require_streamable(Recipe(bit_plan=plan, weight_only=True), ())


def test_extra_macs_are_spent_from_the_planned_bits_on() -> None:
    weights = Weights(Gptq(), 4, extra_macs=0.3)
    rows = quantize(conv_net(), DATA, recipe({"c": 2}, weights=weights)).report.layers
    assert rows[1].num_bits == 2
    assert any(row.extra_macs for row in rows)


def test_the_fastest_plan_is_measured_without_word_lengths() -> None:
    report = quantize(conv_net(), DATA, recipe({"c": ROWS}, optimize="latency")).report
    assert report.plans[0].name == "float"
    assert report.recipe["bit_plan"] == {"layers": {"c": list(ROWS)}}


# in files

NAMES = st.text(max_size=12)
BITS = st.one_of(st.integers(2, 8), st.just(FLOAT), st.lists(st.integers(2, 8), min_size=1, max_size=6).map(tuple))


@given(st.dictionaries(NAMES, BITS, max_size=5))
def test_plans_come_back_from_tables_and_from_toml(layers: dict[str, Any]) -> None:
    plan = BitPlan(layers)
    assert BitPlan.from_table(json.loads(json.dumps(plan.to_table()))) == plan
    asked = Recipe(bit_plan=plan)
    assert recipe_from(tomllib.loads(recipe_toml(recipe_to(asked))), "toml") == asked
    assert hash(asked) == hash(replace(asked))


@given(st.dictionaries(NAMES.filter(lambda name: "\0" not in name), BITS, max_size=5))
def test_plans_come_back_from_their_files(tmp_path_factory: pytest.TempPathFactory, layers: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    BitPlan(layers).save(path)
    assert BitPlan.load(path) == BitPlan(layers)
    assert len(path.read_text().splitlines()) >= len(layers), "a line per layer, for whoever compares two"


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "half a file": (b'{"layers": {"c"', "not JSON"),
    "bytes": (b"\xff\xfe", "not JSON"),
    "a list": (b"[]", "table `layers`"),
    "a list of layers": (b'{"layers": [4]}', "table `layers`"),
    "an unknown key": (b'{"layers": {}, "unit": 1}', "key 'unit' is unknown"),
    "no layers": (b"{}", "table `layers`"),
    "1 bit": (b'{"layers": {"c": 1}}', "layer 'c' has bits 1; expected 2 to 8"),
    "9 bits": (b'{"layers": {"c": 9}}', "layer 'c' has bits 9"),
    "32 bits": (b'{"layers": {"c": 32}}', "layer 'c' has bits 32"),
    "0 bits in a feature": (b'{"layers": {"c": [4, 0]}}', r"layer 'c' has bits \[4, 0\]"),
    "float in a feature": (b'{"layers": {"c": [4, "float"]}}', "layer 'c' has bits"),
    "no features": (b'{"layers": {"c": []}}', r"layer 'c' has bits \[\]"),
    "a fraction": (b'{"layers": {"c": 4.0}}', "layer 'c' has bits 4.0"),
    "true": (b'{"layers": {"c": true}}', "layer 'c' has bits True"),
    "null": (b'{"layers": {"c": null}}', "layer 'c' has bits None"),
    "NaN": (b'{"layers": {"c": NaN}}', "layer 'c' has bits nan"),
    "another word": (b'{"layers": {"c": "double"}}', "layer 'c' has bits 'double'"),
    "a layer twice": (b'{"layers": {"c": 4, "c": 5}}', "'c' is there twice"),
    "a long number": (b'{"layers": {"c": ' + b"9" * 5000 + b"}}", "not JSON"),
    "brackets": (b"[" * 100_000, "not JSON"),
    "lists in lists": (b'{"layers": {"c": [[4]]}}', "layer 'c' has bits"),
}


@pytest.mark.parametrize(("contents", "word"), BROKEN.values(), ids=BROKEN)
def test_broken_plans_are_one_line(tmp_path: Path, contents: bytes, word: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(contents)
    with pytest.raises(RecipeError, match=word) as found:
        BitPlan.load(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


def test_python_is_held_to_the_same_bounds() -> None:
    for bits in (0, 1, 9, 31, (), (4, FLOAT), (4, 2.0), True, "4"):
        with pytest.raises(RecipeError, match="layer 'c' has bits"):
            BitPlan({"c": bits})  # type: ignore[dict-item]


def test_only_a_recipes_file_opens_files(tmp_path: Path) -> None:
    """Cards come from anywhere: what they hold must not make anybody read a path."""
    BitPlan({"c": 4}).save(tmp_path / "plan.json")
    with pytest.raises(RecipeError, match="only a recipe's file names a bit plan by its path"):
        recipe_from({"bit_plan": str(tmp_path / "plan.json")}, "card")


# on the command line


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    ir.save(conv_net(), folder / "m.onnx")
    np.savez(folder / "d.npz", x=np.concatenate([feed["x"] for feed in DATA]))
    return folder


def invoke(stage: Path, recipe_path: Path, output: Path, *more: str) -> Result:
    command = ["quantize", str(stage / "m.onnx"), "--data", str(stage / "d.npz"), "--target", "cpu-x86"]
    return CliRunner().invoke(main, [*command, "--recipe", str(recipe_path), "-o", str(output), *more])


def beside(folder: Path, plan: bytes, name: str = "plan.json") -> Path:
    """A recipe with a plan beside it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(plan)
    (folder / "r.toml").write_text(f'bit_plan = "{name}"\naccept_poor = true\n[weights]\nmethod = "rtn"\nbits = 4\n')
    return folder / "r.toml"


def test_a_plan_lies_beside_its_recipe(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = beside(tmp_path / "recipes", json.dumps({"layers": {"c": ROWS, "y": "float"}}).encode())
    monkeypatch.chdir(tmp_path)  # the path starts at the recipe, wherever that is read from
    assert load_recipe(path).bit_plan == BitPlan({"c": ROWS, "y": FLOAT})
    made = tmp_path / "q.onnx"
    result = invoke(stage, Path("recipes/r.toml"), made, "--save-recipe", str(tmp_path / "again.toml"))
    assert result.exit_code == 0, result.output
    assert lengths(made.read_bytes(), "c") == list(ROWS)
    card = json.loads((tmp_path / "q.onnx.card.json").read_text())
    assert card["recipe"]["bit_plan"] == {"layers": {"c": list(ROWS), "y": "float"}}
    assert [row["name"] for row in card["layers"]] == ["n", "c", "d"]
    (tmp_path / "recipes/plan.json").unlink()  # the saved recipe holds the plan itself
    assert invoke(stage, tmp_path / "again.toml", tmp_path / "again.onnx").exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == made.read_bytes()


@pytest.mark.parametrize("name", ["nothing", "an unknown key", "9 bits", "a layer twice"])
def test_a_broken_plan_is_one_line_and_exit_code_2(stage: Path, tmp_path: Path, name: str) -> None:
    result = invoke(stage, beside(tmp_path, BROKEN[name][0]), tmp_path / "q.onnx")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert "plan.json" in result.output
    assert not (tmp_path / "q.onnx").exists()


def test_a_plan_that_is_missing_or_no_path_is_one_line(stage: Path, tmp_path: Path) -> None:
    for name in ("missing.json", ".", "..", "a\\u0000b"):
        (tmp_path / "r.toml").write_text(f'bit_plan = "{name}"\n')
        result = invoke(stage, tmp_path / "r.toml", tmp_path / "q.onnx", "--cache", str(tmp_path / "cache"))
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1
        assert "bit plan" in result.output


def test_a_plan_is_an_input_like_any_other(stage: Path, tmp_path: Path) -> None:
    """It is not overwritten, and another plan is another run."""
    path, cache = beside(tmp_path, b'{"layers": {"c": 3}}'), str(tmp_path / "cache")
    assert invoke(stage, path, tmp_path / "plan.json").exit_code == 2
    sizes = []
    for bits in (3, 8, 3):
        (tmp_path / "plan.json").write_text(json.dumps({"layers": {"c": bits}}))
        result = invoke(stage, path, tmp_path / "q.onnx", "--cache", cache)
        assert result.exit_code == 0, result.output
        sizes.append(json.loads((tmp_path / "q.onnx.card.json").read_text())["layers"][1]["num_bits"])
    assert sizes == [3, 8, 3]
    assert "unchanged" in result.output
