"""Words of several lengths in a graph: storage, lowering, splits, budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ptq import Recipe, quantize
from ptq.allocation import Greedy
from ptq.allocation.budget import Macs
from ptq.allocation.points import ALL_POINTS, point_bits
from ptq.calibration.replay import SampleReplay
from ptq.calibration.sequential import SequentialWalk
from ptq.calibration.store import ArrayStore
from ptq.core.affine import QuantParams
from ptq.core.encoding import IntegerWeight
from ptq.core.errors import RecipeError
from ptq.core.plan import QuantPlan
from ptq.core.spec import PerAxis, QuantSpec
from ptq.core.widths import MAX_BITS, Widths
from ptq.models.sessions import run, session_of
from ptq.modes import StaticRanges
from ptq.passes import InsertQdq, place, place_weights, prepare
from ptq.passes.split_center import SplitCenter, can_split
from ptq.recipe import LayerRule, Weights
from ptq.sensitivity import FeatureInfluence
from ptq.sensitivity.float_network import FloatNetwork, PlacedLayer
from ptq.sensitivity.table import SensitivityTable, at_other_bits
from ptq.weights import Gptq, Hqq, Rtn
from tests.builders import conv_net, feeds, model_from_text, random


def outputs(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with session_of(model) as session:
        return np.asarray(run(session, {"x": x})[0])


def close(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-6 * max(np.abs(expected).max(), 1))


LAYERS = {
    "k3 s2": ("y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)", (6, 4, 3, 3), (1, 4, 9, 9)),
    "k5 d2 odd pads": ("y = Conv <pads = [3, 1, 0, 2], dilations = [2, 2]> (x, w)", (6, 4, 5, 5), (1, 4, 13, 13)),
    "k7": ("y = Conv <pads = [3, 3, 3, 3]> (x, w)", (6, 4, 7, 7), (1, 4, 9, 9)),
    "groups": ("y = Conv <pads = [1, 1, 1, 1], group = 2> (x, w)", (6, 2, 3, 3), (1, 4, 8, 8)),
    "depthwise": ("y = Conv <pads = [1, 1, 1, 1], group = 4> (x, w)", (4, 1, 3, 3), (1, 4, 8, 8)),
    "1d": ("y = Conv <pads = [1, 1]> (x, w)", (6, 4, 3), (1, 4, 9)),
    "product": ("y = MatMul (x, w)", (8, 6), (3, 8)),
    "gemm": ("y = Gemm <transB = 1> (x, w)", (6, 8), (3, 8)),
}


def layer_model(name: str) -> tuple[ir.Model, NDArray[np.float32]]:
    body, shape, given = LAYERS[name]
    text = f"m (float[{', '.join(map(str, given))}] x) => (float[{', '.join('ABCD'[: len(given)])}] y) {{ {body} }}"
    return model_from_text(text, {"w": random(shape, 1)}, 21), random(given, 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["rows", "any rows", "centre", "both", "all"])
@pytest.mark.parametrize("name", LAYERS)
def test_words_of_several_lengths_are_stored_short_and_compute_what_they_say(name: str, kind: str, bits: int) -> None:
    model, x = layer_model(name)
    placement = place_weights(model)
    (layer,) = placement.layers
    num_rows, fan_in = layer.layout.to_matrix(np.empty(layer.layout.shape)).shape
    widths, rng = Widths.in_rows(np.full(num_rows, bits, np.int8), fan_in), np.random.default_rng(bits)
    if kind == "any rows":
        widths.rows[:] = rng.integers(0, MAX_BITS + 1, num_rows)
    if kind in ("rows", "both"):
        widths.rows[:] = np.minimum(bits * rng.integers(1, 4, num_rows), MAX_BITS)
    if kind in ("centre", "both") and layer.unfold.kernel:
        taps = np.arange(np.prod(layer.unfold.kernel)) == np.prod(layer.unfold.kernel) // 2
        widths = widths.merge(Widths.at_taps((num_rows, fan_in), bits, taps))
    if kind == "all":
        widths.columns[:] = min(2 * bits, MAX_BITS)
    spec = QuantSpec(bits, signed=True, symmetric=True, granularity=PerAxis(0))
    low, high = widths.limits()
    codes = rng.integers(low.astype(int), high.astype(int) + 1).astype(np.int8)
    scale = (0.01 * (1 + rng.random(num_rows))).astype(np.float32)
    encoding = IntegerWeight.of(codes, QuantParams(scale, np.zeros(num_rows, np.int8), spec), widths)
    lowered = model.clone()
    InsertQdq(QuantPlan({}, {layer.name: encoding}, {}), placement)(lowered)
    expected = model.clone()
    expected.graph.initializers["w"].const_value = ir.tensor(layer.layout.to_tensor(encoding.decode()), name="w")
    assert close(outputs(lowered, x), outputs(expected, x))
    promised = encoding.size_in_bits() / 8
    stored = sum(
        value.const_value.nbytes
        for value in lowered.graph.initializers.values()
        if value.const_value is not None and value.dtype in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4)
    )
    lengths = len(np.unique(widths.bits))
    assert stored <= promised + max(40, 12 * lengths)  # odd ends and the tables that unpack


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("product", "gemm")])
def test_two_convolutions_are_the_one_they_come_from(name: str, per_tensor: bool) -> None:
    model, x = layer_model(name)
    divided = model.clone()
    SplitCenter(frozenset({"y"}), per_tensor)(divided)
    assert [node.op_type for node in divided.graph if node.op_type != "Slice"] == ["Conv", "Conv", "Add"]
    assert close(outputs(divided, x), outputs(model, x))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("Conv (x, w)", (6, 4, 2, 2)),
        ("Conv (x, w)", (6, 4, 1, 1)),
        ('Conv <auto_pad = "SAME_UPPER"> (x, w)', (6, 4, 3, 3)),
    ],
)
def test_some_kernels_cannot_be_split(body: str, shape: tuple[int, ...]) -> None:
    model = model_from_text(f"m (float[1, 4, 8, 8] x) => (float[A, B, C, D] y) {{ y = {body} }}", {"w": random(shape)})
    assert not can_split(model.graph[0])


def wide_centre(channels: int = 24) -> ir.Model:
    """Two convolutions as re-parameterised networks have them, and one that is not."""
    text = """
    m (float[N, 3, 10, 10] x) => (float[N, 5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
        r = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
        s = Relu (c)
        d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (s, w2, b1)
        t = Relu (d)
        g = GlobalAveragePool (t)
        f = Flatten (g)
        y = Gemm <transB = 1> (f, w3)
    }"""
    weights = {"w0": random((channels, 3, 3, 3), 1), "b0": random((channels,), 2), "b1": random((channels,), 3)}
    for index, name in enumerate(("w1", "w2")):
        weights[name] = random((channels, channels, 3, 3), 4 + index, 0.03)
        weights[name][..., 1, 1] += random((channels, channels), 6 + index, 0.2) + 2 * np.eye(
            channels, dtype=np.float32
        )
    weights["w3"] = random((5, channels), 8)
    return model_from_text(text, weights)


DATA = feeds(48, 3, 10, 10)


@pytest.mark.parametrize(("bits", "gain"), [(4, 4.0), (2, 1.0)])
def test_wide_centres_are_found_split_and_run_on_integers(bits: int, gain: float) -> None:
    results = {
        split: quantize(wide_centre(), DATA, Recipe(weights=Weights(Gptq(), bits=bits, split=split))).report
        for split in ("never", "auto", "whole")
    }
    quality = {split: report.proof.comparison.sqnr_db for split, report in results.items()}
    assert quality["auto"] > quality["never"] + gain
    assert quality["whole"] > quality["auto"]
    rows = {row.name: row for row in results["auto"].layers}
    assert [name for name, row in rows.items() if row.extra_macs] == ["c", "d"]
    assert rows["c"].extra_macs * 9 == rows["c"].num_macs
    assert rows["c"].points.startswith("split (+")
    for report in results.values():
        assert report.proof.kernels.num_linear == 4
        assert not report.proof.kernels.fallbacks
    counted = results["auto"].card()["quantization"]["extra_macs"]
    assert counted["layers"] == 2
    assert counted["executed"] == 0


def test_splits_that_gain_nothing_are_rejected_and_said() -> None:
    rule = LayerRule("Gemm", split="center")
    weights = Weights(Gptq(), bits=4)
    rows = {
        row.name: row for row in quantize(wide_centre(), DATA, Recipe(weights=weights, layers=(rule,))).report.layers
    }
    assert rows["y"].points == "no split: its kernel has no centre"
    assert rows["a"].points == ""
    assert rows["a"].extra_macs == 0


def test_eight_bit_kernels_get_a_second_convolution_where_they_share_a_scale() -> None:
    plain, split = (
        quantize(wide_centre(), DATA, Recipe(weights=Weights(Rtn(), granularity="per-tensor", split=split))).report
        for split in ("never", "auto")
    )
    assert split.proof.comparison.sqnr_db > plain.proof.comparison.sqnr_db
    assert split.proof.kernels.integer["QLinearConv"] == plain.proof.kernels.integer["QLinearConv"] + 2
    assert split.proof.kernels.integer["QLinearAdd"] == 2
    assert split.card()["quantization"]["extra_macs"]["executed"] > 0.05
    assert any("2 convolutions split" in note for note in split.notes)


def test_bits_go_where_they_gain_and_cost_what_was_granted() -> None:
    quality, shares = [], []
    for share in (0.0, 0.05, 0.2, 10.0):
        weights = Weights(Gptq(), bits=3, extra_macs=share, split="never")
        report = quantize(conv_net(), feeds(64, 3, 16, 16), Recipe(weights=weights)).report
        quality.append(report.proof.comparison.sqnr_db)
        shares.append(report.card()["quantization"]["extra_macs"]["share"])
    assert shares[0] == 0
    assert all(found <= asked for found, asked in zip(shares, (0.0, 0.05, 0.2, 10.0), strict=True))
    assert shares[3] == 2.0  # three words everywhere, of 3 bits: more do not fit into 8 bits
    assert quality[3] > quality[2] > quality[0]


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"extra_macs": -0.1, "bits": 4, "method": Gptq()}, "expected a share"),
        ({"extra_macs": 0.1, "bits": 8, "method": Gptq()}, "less than 8 bits"),
        ({"extra_macs": 0.1, "bits": 4, "method": Rtn()}, "rtn does not see"),
        ({"extra_macs": 0.1, "bits": 4, "method": Hqq()}, "hqq does not see; expected gpfq, gptq, qronos"),
    ],
)
def test_budgets_that_cannot_be_spent_are_refused(weights: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Recipe(weights=Weights(**weights))


def test_a_budget_is_spent_on_the_best_first() -> None:
    gains = {"a": (np.array([4.0, 1.0, 0.0]), 4), "b": (np.array([30.0]), 4), "full": (np.array([9.0]), 8)}
    rows = {name: at_other_bits(gain, bits, ALL_POINTS) for name, (gain, bits) in gains.items()}
    num_bits = {name: bits for name, (_, bits) in gains.items()}
    table = SensitivityTable.of_rows(rows, ALL_POINTS).among(
        {name: point_bits(each) for name, each in num_bits.items()}
    )
    cost = Macs({"a": 30, "b": 100, "full": 1}, num_bits)

    def spend(budget: float) -> dict[str, Any]:
        return dict(Greedy().allocate(table, cost, budget).layers)

    assert spend(0.0) == {"a": (4, 4, 4), "b": (4,), "full": (8,)}
    assert spend(20.0) == {"a": (8, 8, 4), "b": (4,), "full": (8,)}
    assert spend(1310.0) == {"a": (8, 8, 4), "b": (8,), "full": (8,)}  # what gains nothing gets nothing


FEATURES = 32


def test_influence_is_what_errors_do_to_the_outputs() -> None:
    """The obvious twin: the whole network with one feature's weights changed and its bias corrected."""
    x = random((8, 3, 10, 10), 5)
    model, _ = prepare(wide_centre(FEATURES), {"x": x[:1]})
    placement = place(model)
    layer = placement.layers[1]
    rounding = random((FEATURES, layer.fan_in), 9, 0.01)
    energy = np.arange(FEATURES, 0, -1.0)
    placed = PlacedLayer(layer.name, 4, energy, layer=layer, rounding=rounding, centered=True)
    with ArrayStore(1 << 30) as store:
        samples = SampleReplay(store)
        list(samples.record({"x": x[i : i + 1]} for i in range(8)))
        plan = plan_of(model)
        walk = SequentialWalk(model, placement, plan, placement.layers, samples, survey=True)
        network = FloatNetwork(model, walk.float_run, walk.sizes)
        for at, _ in walk.layers():
            if at is layer:
                table = FeatureInfluence(FEATURES).measure([placed], (4, 5), network)
                assert network.positions(placed) == 100
    found = table.rows[layer.name]
    np.testing.assert_array_equal(found[:, 1] * 4, found[:, 0])
    assert table.error[0] == pytest.approx(found.sum(0))
    reference = outputs(model, x).astype(np.float64)
    for feature in (0, 5, FEATURES - 1):
        changed = model.clone()
        weight = changed.graph.initializers["w1"].const_value.numpy().copy()
        weight[feature] += rounding[feature].reshape(weight.shape[1:])
        before = response(model, model.graph.initializers["w1"].const_value.numpy(), x)
        shift = (response(model, weight, x) - before)[:, feature].mean()
        bias = changed.graph.initializers["b1"].const_value.numpy().copy()
        bias[feature] -= shift
        changed.graph.register_initializer(initializer("w1_changed", weight))
        changed.graph.register_initializer(initializer("b1_changed", bias))
        node = next(node for node in changed.graph if node.outputs[0].name == "c")
        node.replace_input_with(1, changed.graph.initializers["w1_changed"])
        node.replace_input_with(2, changed.graph.initializers["b1_changed"])
        error = outputs(changed, x) - reference
        assert found[feature, 0] == pytest.approx(np.square(error).sum() / np.square(reference).sum(), rel=1e-3)


def plan_of(model: ir.Model) -> QuantPlan:
    """Any complete plan."""
    seen: list[QuantPlan] = []
    original = StaticRanges.lower

    def lower(mode: StaticRanges, *given: Any) -> ir.Model:
        seen.append(given[2])
        return original(mode, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticRanges, "lower", lower)
        quantize(model, DATA, Recipe(weights=Weights(Rtn(), split="never")))
    return seen[0]


def response(model: ir.Model, weight: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Output of the second convolution of `wide_centre` for some weight."""
    copy = model.clone()
    copy.graph.initializers["w1"].const_value = ir.tensor(weight, name="w1")
    node = next(node for node in copy.graph if node.outputs[0].name == "c")
    copy.graph.outputs.clear()
    copy.graph.outputs.append(node.outputs[0])
    return outputs(copy, x)


def initializer(name: str, array: NDArray[np.float32]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
