"""`ptq diff`: a planted fault is in first place, restored models are the float model, errors say what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import ptq
from ptq import api
from ptq.analysis.diff import Diff
from ptq.analysis.diff.network import SwitchedNetwork
from ptq.calibration.observers import Dynamic, Percentile
from ptq.cli import main
from ptq.recipe import Weights
from ptq.sensitivity.problem import RoundedLayer
from ptq.weights import Gptq, Rtn
from tests.builders import attention, conv_net, feeds, model_from_text, random
from tests.planted import change, clipped, fork, scaled, wrong_scale

SEEDS = [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(3, 10))]


def data(seed: int, count: int = 4) -> list[dict[str, Any]]:
    return feeds(count, 3, 16, 16, seed=seed + 50)


def quantized(model: ir.Model, seed: int, recipe: ptq.Recipe | None = None) -> ir.Model:
    """A quantized model, rounded unless the recipe names another method."""
    recipe = recipe or ptq.Recipe()
    recipe = replace(recipe, weights=replace(recipe.weights, method=recipe.weights.chosen))
    return ptq.quantize(model, feeds(16, 3, 16, 16, seed=seed), recipe).delivery.model


def first(found: Diff) -> tuple[str, str]:
    return found.findings[0].kind, found.findings[0].layer


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wrong_scale_of_one_channel_comes_first(seed: int) -> None:
    model, layer = fork(seed), "ace"[seed % 3]
    found = api.diff(model, wrong_scale(quantized(model, seed), layer, seed % 8), data(seed))
    assert first(found) == ("wrong-weights", layer)
    assert f"channel {seed % 8} " in found.findings[0].text
    assert found.findings[0].share > 0.5
    assert found.layers[0].name == layer


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wide_channel_under_one_scale_comes_first(seed: int) -> None:
    model, channel = fork(seed), seed % 8
    for name, axis, factor in (("w2", 0, 100), ("b2", 0, 100), ("w3", 1, 0.01), ("w4", 1, 0.01)):
        change(model, name, scaled(channel, factor, axis))
    recipe = ptq.Recipe(equalize=False)
    recipe = replace(recipe, weights=replace(recipe.weights, granularity="per-tensor"))
    found = api.diff(model, quantized(model, seed, recipe), data(seed))
    assert first(found) == ("wide-channel", "c")
    assert f"channel {channel} " in found.findings[0].text


@pytest.mark.parametrize("seed", SEEDS)
def test_a_concat_of_unequal_ranges_comes_first_and_its_command_mends_it(seed: int) -> None:
    model = fork(seed)
    change(model, "w3", scaled(slice(None), 1 / 50))
    change(model, "w5", scaled(slice(0, 8), 50))
    found = api.diff(model, quantized(model, seed), data(seed))
    assert first(found) == ("uneven-concat", "q")
    assert found.findings[0].option == "--exclude q --exclude h"
    mended = api.diff(model, quantized(model, seed, ptq.Recipe(exclude=("q", "h"))), data(seed))
    assert mended.sqnr_db > found.sqnr_db + 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clipped_activation_comes_first(seed: int) -> None:
    model, value = fork(seed), "rs"[seed % 2]
    found = api.diff(model, clipped(quantized(model, seed), value), data(seed))
    assert first(found) == ("clipped", {"r": "a", "s": "c"}[value])
    assert found.findings[0].option == "--activations minmax"
    assert found.findings[0].command.endswith("-o QUANT --activations minmax")


@pytest.mark.parametrize("bits", [8, 7, 6, 4])
def test_a_restored_model_is_the_float_model(bits: int) -> None:
    recipe = ptq.Recipe()
    recipe = replace(recipe, weights=replace(recipe.weights, bits=bits))
    model = conv_net()
    found = api.diff(model, quantized(model, 0, recipe), data(0))
    assert found.float_sqnr_db is not None
    assert found.float_sqnr_db > 60
    assert found.notes == ()
    assert any(each.kind == "few-bits" and "bits=8" in each.option for each in found.findings) == (bits < 7)


@pytest.mark.parametrize("bits", [8, 7])
def test_what_solvers_move_says_nothing_about_scales(bits: int) -> None:
    recipe = ptq.Recipe(weights=Weights(Gptq(), bits=bits))
    found = api.diff(conv_net(), quantized(conv_net(), 0, recipe), data(0))
    assert found.float_sqnr_db is not None
    assert found.float_sqnr_db > found.sqnr_db + 10


FORMS: dict[str, tuple[ptq.Recipe, bool]] = {
    "static": (ptq.Recipe(), True),
    "short activations": (ptq.Recipe(activation_bits=5, activations=Percentile(95.0)), True),
    "weight only": (ptq.Recipe(weight_only=True), True),
    "blocks": (ptq.Recipe(weight_only=True, weights=Weights(bits=4, granularity="block-16")), True),
    "dynamic": (ptq.Recipe(activations=Dynamic()), False),
    "native": (ptq.Recipe(target="native", activations=Dynamic()), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_transformers_in_every_form(form: str) -> None:
    model, samples = attention(), feeds(16, 6, 16)
    recipe, switched = FORMS[form]
    found = api.diff(model, ptq.quantize(model, samples, recipe).delivery.model, samples[:3])
    assert len(found.layers) > 3
    assert found.num_samples == 3
    assert (found.float_sqnr_db is not None) == switched
    if switched:
        assert found.float_sqnr_db > found.sqnr_db + 10  # scales that were evened out are estimated from the codes
    else:
        assert "without shares" in found.notes[0]


def test_codes_that_move_to_integer_operators_stay_codes() -> None:
    result = ptq.quantize(conv_net(), data(0), ptq.Recipe(target="native"))
    kinds = [node.op_type for node in result.delivery.model.graph]
    assert kinds[kinds.index("Transpose") + 1] == "NhwcQLinearConv"
    found = api.diff(conv_net(), result.delivery.model, data(0))
    assert found.sqnr_db > 20
    assert any("hold their grids inside" in note for note in found.notes)


def outliers() -> ir.Model:
    """Twice: a scale of LayerNormalization that smoothing evens out, then a product with an outlier that stands aside.

    The outlier makes nearly all of output feature 3, so that the codes of this feature hold little of its energy.
    """
    text, weights, source = "net (float[B, S, 16] x) => (float[B, S, 16] y2) {\n", {}, "x"
    for i in (1, 2):
        text += f"""
        n{i} = LayerNormalization <axis = -1> ({source}, g{i}, b{i})
        f{i} = MatMul (n{i}, v{i})
        e{i} = Erf (f{i})
        z{i} = Mul (f{i}, e{i})
        o{i} = MatMul (z{i}, w{i})
        ob{i} = Add (o{i}, c{i})
        y{i} = Add (ob{i}, {source})
        """
        source = f"y{i}"
        wide = np.where(np.arange(16) == 7, np.float32(40), np.float32(1))
        weights |= {f"v{i}": random((16, 128), i) / wide[:, None], f"w{i}": random((128, 16), i + 2)}
        weights |= {f"g{i}": wide, f"b{i}": random((16,), i + 4), f"c{i}": random((16,), i + 6)}
        weights[f"v{i}"][:, 5] *= 10
        weights[f"w{i}"][5, 3] = 12
    return model_from_text(text + "}", weights)


@pytest.mark.parametrize("target", ["cpu-x86", "portable"])
def test_smoothed_and_split_products_are_no_faults(target: str) -> None:
    model, samples = outliers(), feeds(32, 6, 16)
    done = ptq.quantize(model, samples, ptq.Recipe(target, weights=Weights(Rtn())))
    assert any("smoothed" in note for note in done.report.notes)
    assert any("outlier channels" in note for note in done.report.notes)
    found = api.diff(model, done.delivery.model, samples[:4])
    assert found.float_sqnr_db is not None
    assert found.float_sqnr_db > 55
    assert "wrong-weights" not in {each.kind for each in found.findings}
    assert found.notes == ()


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._feeds = iter(feeds(8, 3, 16, 16))

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=lambda form: str(form.name))
def test_models_of_onnxruntime(form: QuantFormat, tmp_path: Path) -> None:
    onnx.save(ir.to_proto(conv_net()), tmp_path / "m.onnx")
    target = tmp_path / "q.onnx"
    quantize_static(
        str(tmp_path / "m.onnx"), str(target), Reader(), quant_format=form, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    found = api.diff(tmp_path / "m.onnx", target, data(0))
    assert len(found.layers) > 4
    assert all(row.sqnr_db > 10 for row in found.layers)
    if form is QuantFormat.QDQ:
        assert found.float_sqnr_db is not None
        assert found.float_sqnr_db > 60
        assert found.layers[0].share is not None
    else:
        assert found.layers[0].share is None
        assert "without shares" in found.notes[0]


def test_shares_of_parts_that_do_not_interact_add_up() -> None:
    text = """
    net (float[N, 8] x) => (float[N, 4] y, float[N, 4] z) {
        y = Gemm (x, w1)
        z = Gemm (x, w2)
    }"""
    model = model_from_text(text, {"w1": random((8, 4), 1), "w2": random((8, 4), 2)})
    found = api.diff(model, ptq.quantize(model, feeds(32, 8)).delivery.model, feeds(8, 8))
    alone = [row.alone for row in found.layers]
    assert sum(share or 0 for share in alone) == pytest.approx(1, abs=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = fork(0)
    ir.save(model, tmp_path / "m.onnx")
    ir.save(quantized(model, 0), tmp_path / "q.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in data(0, 20)]))
    return tmp_path


def diff(folder: Path, *arguments: str) -> Result:
    paths = [str(folder / each) if "." in each else each for each in arguments]
    return CliRunner().invoke(main, ["diff", *paths, "--data", str(folder / "d.npz")])


def test_the_table_and_the_commands(folder: Path) -> None:
    done = diff(folder, "m.onnx", "q.onnx")
    assert done.exit_code == 0, done.output
    for word in ("SQNR dB", "alone", "restored", "worst", "20 samples", "ptq quantize", "--exclude"):
        assert word in done.stdout


def test_json_holds_what_the_help_says(folder: Path) -> None:
    facts = json.loads(diff(folder, "m.onnx", "q.onnx", "--json", "--samples", "2").stdout)
    listed = ["sqnr_db", "cosine", "num_samples", "num_shared", "float_sqnr_db", "findings", "layers", "worst", "notes"]
    assert sorted(facts) == sorted(listed)
    shares = ["alone", "restored", "share", "of_weights", "of_grids"]
    assert sorted(facts["layers"][0]) == sorted(
        [*shares, "name", "op_type", "sqnr_db", "cosine", "has_grids", "readers", "module", "is_new"]
    )
    assert sorted(facts["findings"][0]) == sorted(
        ["kind", "layer", "share", "alone", "restored", "text", "option", "command"]
    )
    assert sorted(facts["worst"][0]) == ["index", "sqnr_db"]
    assert facts["num_samples"] == 2
    assert facts["worst"][0]["sqnr_db"] <= facts["worst"][1]["sqnr_db"]


def test_quiet_says_nothing(folder: Path) -> None:
    done = diff(folder, "m.onnx", "q.onnx", "--quiet", "--samples", "1")
    assert (done.exit_code, done.stdout) == (0, "")


def test_errors_say_what_is_wrong(folder: Path) -> None:
    ir.save(
        model_from_text("net (float[N, 3] u) => (float[N, 3] y) { y = Gemm (u, w) }", {"w": random((3, 3))}),
        folder / "o.onnx",
    )
    cases = {
        ("q.onnx", "m.onnx"): "swapped",
        ("q.onnx", "q.onnx"): "already quantized",
        ("m.onnx", "m.onnx"): "not quantized",
        ("o.onnx", "q.onnx"): "inputs",
    }
    for arguments, word in cases.items():
        done = diff(folder, *arguments)
        assert done.exit_code == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert word in done.stderr


def test_shares_of_layers_are_parts_of_the_whole_error() -> None:
    layers = [RoundedLayer(name, 4, np.array([error])) for name, error in (("a", 3.0), ("b", 1.0))]
    every = [np.arange(1)]
    some, more = SwitchedNetwork(0.1, {"a": 0.5, "b": 0.25}), SwitchedNetwork(0.1, {"a": 1.0, "b": 0.5, "c": 0.5})
    assert [network.errors(layer, every)[0] for network in (some, more) for layer in layers] == pytest.approx(
        [0.05, 0.025, 0.05, 0.025]  # shares that add up to more than all are scaled down
    )
    assert some.or_guessed(layers) is some
    guessed = SwitchedNetwork(0.1, {"c": 0.5}).or_guessed(layers)  # none of these layers could be switched
    assert [guessed.errors(layer, every)[0] for layer in layers] == pytest.approx([0.075, 0.025])


def test_a_recurrent_layer_of_which_only_the_state_is_read_is_explained() -> None:
    text = """
    net (float[6, 1, 12] x) => (float[1, 1, 5] y) {
        a = MatMul (x, wi)
        , h = LSTM <hidden_size = 16> (a, w, r)
        y = MatMul (h, wo)
    }"""
    weights = {
        "wi": random((12, 12), 1),
        "w": random((1, 64, 12), 2),
        "r": random((1, 64, 16), 3),
        "wo": random((16, 5)),
    }
    model = model_from_text(text, weights)
    samples = [{"x": random((6, 1, 12), number, 1.0)} for number in range(16)]
    found = api.diff(model, ptq.quantize(model, samples).delivery.model, samples)
    assert "" not in {layer.name for layer in found.layers}
    assert "h" in {layer.name for layer in found.layers}
