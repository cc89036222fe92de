"""Channels that cost little: what they cost, weights refitted without them, and which leave a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq import Goals, Recipe, calibrate, quantize, squeeze
from ptq.api import diff
from ptq.calibration.refitting import View
from ptq.calibration.shards import Shard
from ptq.cli import main
from ptq.core.channel_refit import ChannelMoments, Elimination, PairMoments, refit
from ptq.core.errors import PtqError, RecipeError, UnsupportedModelError
from ptq.passes.channels.groups import ChannelGroups
from ptq.passes.channels.products import Products
from ptq.passes.channels.removed import left_of
from ptq.passes.check_equivalence import float_outputs
from ptq.passes.infer_shapes import annotate
from ptq.passes.linear import constant
from ptq.recipe import Weights
from ptq.recipe.toml import recipe_from, recipe_to
from ptq.transforms import PruneChannels, Squeeze
from ptq.weights import Rtn
from tests.builders import Arrays, feeds, model_from_text, random
from tests.squeezing import ALL, Plants
from tests.transforming import rewritten
from tests.unit.test_squeeze import BODIES, nothing
from tests.unit.test_squeeze import net as planted

EASY = Goals(min_sqnr_db=-100.0)


def mixed(rows: int, channels: int, seed: int, rank: int | None = None) -> Any:
    """Rows of channels that tell of each other."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank or channels)) @ rng.standard_normal((rank or channels, channels)) + 1


def lost(rows: Any, weight: Any, gone: list[int]) -> float:
    """The slow, obvious way: refit by least squares on the samples themselves, and look at what is left."""
    kept = np.delete(np.concatenate([rows, np.ones((len(rows), 1))], 1), gone, 1)
    wanted = rows @ weight.T
    fitted = np.linalg.lstsq(kept, wanted, rcond=None)[0]
    return float(np.square(kept @ fitted - wanted).sum() / np.square(wanted - wanted.mean(0)).sum())


@given(seed=st.integers(0, 1000), blocks=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
@settings(max_examples=20)
def test_costs_are_those_of_least_squares(seed: int, blocks: list[int]) -> None:
    rows, weight = mixed(200, 8, seed), random((5, 8), seed)
    layer = Elimination.of(weight, ChannelMoments.of(rows, 1, 0).covariance)
    single = [lost(rows, weight, [channel]) for channel in range(8)]
    np.testing.assert_allclose(layer.costs, single, rtol=0.05, atol=1e-3)
    total, gone = 0.0, list[int]()
    for block in blocks:
        pair = np.array([2 * block, 2 * block + 1])
        total, layer, gone = total + layer.cost(pair), layer.without(pair), [*gone, *pair.tolist()]
    assert total == pytest.approx(lost(rows, weight, gone), rel=0.05, abs=1e-3)
    assert not layer.costs[gone].any()


def test_of_two_channels_that_say_the_same_one_costs_nothing_and_both_much() -> None:
    rows, weight = mixed(200, 3, 0), np.ones((1, 3))
    rows[:, 1] = rows[:, 0]
    layer = Elimination.of(weight, ChannelMoments.of(rows, 1, 0).covariance)
    assert layer.costs[0] < 1e-3
    assert layer.without(np.array([0])).costs[1] > 0.1


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 9), max_size=2, unique=True))
@settings(max_examples=10)
def test_moments_of_samples_add_up_in_any_order(seed: int, cuts: list[int]) -> None:
    samples = random((10, 6, 3, 4), seed)
    parts = [ChannelMoments.of(sample, 1, number) for number, sample in enumerate(samples[:, None].swapaxes(1, 2))]
    one, other = parts[0], parts[-1]
    for part in parts[1:]:
        one = one.merge(part)
    for part in parts[-2::-1]:
        other = other.merge(part)
    np.testing.assert_array_equal(one.covariance, other.covariance)


@pytest.mark.parametrize("shifts", [True, False])
def test_refitted_weights_are_those_of_least_squares(shifts: bool) -> None:
    original = mixed(600, 6, 1)
    given_rows = original[:, :4] + 0.1 * np.random.default_rng(2).standard_normal((600, 4))
    wanted = random((5, 6), 3).astype(np.float64)
    halves = tuple((PairMoments.of(given_rows[i::2], original[i::2]),) * 2 for i in (0, 1))
    weight, constants = refit(halves, wanted, wanted[:, :4], shifts=shifts)
    columns = np.concatenate([given_rows, np.ones((600, 1))], 1) if shifts else given_rows
    expected = np.linalg.lstsq(columns, original @ wanted.T, rcond=None)[0].T
    np.testing.assert_allclose(weight, expected[:, :4], atol=0.02)
    np.testing.assert_allclose(constants, expected[:, 4] if shifts else 0.0, atol=0.05)


def test_few_samples_leave_weights_near_what_they_were() -> None:
    """Where one half of the samples says nothing about the other, weights are not fitted to either."""
    wanted, noise = random((5, 40), 1).astype(np.float64), np.random.default_rng(0).standard_normal((2, 20, 40))
    others = np.random.default_rng(9).standard_normal((20, 40))
    halves = tuple((PairMoments.of(rows, rows + others),) * 2 for rows in noise)
    weight, _ = refit(halves, wanted, wanted, shifts=False)
    assert np.abs(weight - wanted).mean() < 0.5 * np.abs(wanted).mean()


CHAIN = """
net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    s = Relu (c)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
}"""
SKIP = """
net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    t = Relu (c)
    d = Conv <group = 16, pads = [1, 1, 1, 1]> (t, dw)
    e = Conv (d, pw)
    q = Add (e, r)
    s = Relu (q)
    g = GlobalAveragePool (s)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
}"""
DENSE = """
net (float[N, S, 12] x) => (float[N, S, 6] y) {
    a = MatMul (x, m1)
    r = Gelu (a)
    b = MatMul (r, m2)
    n = Add (b, c2)
    t = Tanh (n)
    y = MatMul (t, m3)
}"""
TRANSPOSED = """
net (float[N, 3, 8, 8] x) => (float[N, 4, 17, 17] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = ConvTranspose <strides = [2, 2]> (r, wt)
    s = Relu (c)
    y = Conv <pads = [1, 1, 1, 1]> (s, w4)
}"""
JOINED = """
net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2)
    s = Relu (c)
    k = Concat <axis = 1> (r, s)
    p = MaxPool <kernel_shape = [4, 4], strides = [4, 4]> (k)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w5, b3)
}"""
NETS = {"chain": CHAIN, "skip": SKIP, "dense": DENSE, "transposed": TRANSPOSED, "joined": JOINED}


def low_rank(shape: tuple[int, ...], rank: int, seed: int) -> Any:
    """Weights whose features are mixtures of a few."""
    few = random((shape[0], rank), seed, 1.0) @ random((rank, int(np.prod(shape[1:]))), seed + 1)
    return (few.reshape(shape) / rank**0.5 + random(shape, seed + 2, 0.02)).astype(np.float32)


def net(name: str) -> ir.Model:
    """A network of layers whose channels tell of each other."""
    weights: Arrays = {
        "w1": low_rank((16, 3, 3, 3), 5, 1), "b1": random((16,), 2) + 1, "w2": low_rank((16, 16, 3, 3), 5, 3),
        "dw": random((16, 1, 3, 3), 4), "pw": low_rank((16, 16, 1, 1), 5, 5), "w3": random((4, 16), 6),
        "b3": random((4,), 7), "m1": low_rank((24, 12), 6, 8).T.copy(), "m2": low_rank((24, 24), 6, 9),
        "c2": random((24,), 10), "m3": random((24, 6), 11), "wt": low_rank((16, 16, 3, 3), 5, 12),
        "w4": random((4, 16, 3, 3), 13), "w5": random((4, 128), 14),
    }  # fmt: skip
    used = {key: array for key, array in weights.items() if key in NETS[name].replace("(", " ").replace(")", " ")}
    return model_from_text(NETS[name], used, opset=20)


def samples_of(name: str, count: int = 24) -> list[dict[str, Any]]:
    return feeds(count, 10, 12) if name == "dense" else feeds(count, 3, 8, 8)


def sqnr_db(model: ir.Model, other: ir.Model, samples: list[dict[str, Any]]) -> float:
    pairs = [(float_outputs(model, feed)["y"], float_outputs(other, feed)["y"]) for feed in samples]
    signal = sum(np.square(a).sum() for a, _ in pairs)
    return float(10 * np.log10(signal / max(sum(np.square(a - b).sum() for a, b in pairs), 1e-30)))


def count(model: ir.Model, feed: dict[str, Any]) -> float:
    annotate(model, feed)
    groups = ChannelGroups.of(model)
    return Products.of(model, groups, feed).count(np.zeros(len(groups.fixed), np.bool_))


@pytest.mark.parametrize("name", NETS)
def test_few_enough_products_are_left_and_refitting_gains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = net(name), samples_of(name, 40)
    seen, unseen = samples[:32], samples[32:]
    state = rewritten(model, seen, PruneChannels(0.7))
    assert count(state.model, seen[0]) <= 0.7 * count(model, seen[0])
    refitted = sqnr_db(model, state.model, unseen)
    monkeypatch.setattr("ptq.transforms.prune_channels._refit", lambda *_: [])
    plain = rewritten(net(name), seen, PruneChannels(0.7))
    assert count(plain.model, seen[0]) == count(state.model, seen[0])
    assert refitted > sqnr_db(model, plain.model, unseen) + 3


def test_taps_learn_from_their_own_position_where_samples_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = net("chain"), samples_of("chain", 40)
    seen, unseen = samples[:8], samples[8:]
    views = list[View]()
    monkeypatch.setattr("ptq.calibration.refitting.View", lambda taps: views.append(View(taps)) or views[-1])
    refitted = rewritten(model, seen, PruneChannels(0.4)).model
    assert {view.taps for view in views} == {1, 9}
    monkeypatch.setattr("ptq.transforms.prune_channels._refit", lambda *_: [])
    plain = rewritten(net("chain"), seen, PruneChannels(0.4)).model
    assert sqnr_db(model, refitted, unseen) > sqnr_db(model, plain, unseen) + 3


@pytest.mark.parametrize("taps", [1, 9])
def test_weights_over_rows_of_either_kind_go_back_and_forth(taps: int) -> None:
    weight, view = random((5, 4 * 9), 1), View(taps)
    assert view.matrix(weight).shape == (5 * taps, 36 // taps)
    np.testing.assert_array_equal(view.weight(view.matrix(weight).astype(np.float64)), weight)


def test_what_lies_before_the_channels_stays_bit_for_bit() -> None:
    """Layers whose input is what it was keep their weights, and so do all where what left carried nothing."""
    model, samples = net("chain"), samples_of("chain")
    changed = rewritten(model, samples, PruneChannels(0.7)).model
    kept = constant(changed.graph.initializers["w1"])
    assert all(any(np.array_equal(row, other) for other in constant(model.graph.initializers["w1"])) for row in kept)
    silent = constant(model.graph.initializers["w1"]).copy()
    silent[:8] = 0
    model.graph.initializers["w1"].const_value = ir.tensor(silent, name="w1")
    bias = np.where(np.arange(16) < 8, 0, random((16,), 2)).astype(np.float32)
    model.graph.initializers["b1"].const_value = ir.tensor(bias, name="b1")
    changed = rewritten(model, samples, PruneChannels(0.7, 8)).model
    second = constant(model.graph.initializers["w2"])
    assert np.array_equal(constant(changed.graph.initializers["w2"]), second[:, 8:])


@pytest.mark.parametrize("name", BODIES)
def test_channels_leave_through_whatever_lies_between(name: str) -> None:
    """Dead, constant and doubled channels are among those that leave, so that little is lost."""
    body, kinds, more, words = (*BODIES[name], *(None, ALL, nothing, {})[len(BODIES[name]) :])
    between = planted(body, Plants(0, kinds), more, **words)
    model, samples = between.model(), between.samples(20)
    changed = rewritten(model, samples[:16], PruneChannels(0.7, 4)).model
    assert count(changed, samples[0]) <= 0.7 * count(model, samples[0])
    assert sqnr_db(model, changed, samples[16:]) > 20


def test_products_are_those_that_layers_take() -> None:
    feed = samples_of("skip")[0]
    assert count(net("skip"), feed) == 64 * (16 * 27 + 16 * 144 + 16 * 9 + 256) + 64
    taps = 64 * (16 * 27 + 16 * 144) + 17 * 17 * 4 * 144
    assert count(net("transposed"), feed) == pytest.approx(taps, rel=0.2)  # beyond the border nothing is left out


def test_channels_stay_in_bundles() -> None:
    model, samples = net("chain"), samples_of("chain")
    sizes = [len(constant(node.inputs[1])) for node in rewritten(model, samples, PruneChannels(0.5)).model.graph
             if node.op_type in ("Conv", "Gemm")]  # fmt: skip
    assert sizes[-1] == 4
    assert {size % 4 for size in sizes} == {0}


def test_whole_vectors_of_kernels_go_first() -> None:
    model, samples = net("chain"), samples_of("chain")
    sizes = [len(constant(node.inputs[1])) for node in rewritten(model, samples, PruneChannels(0.6, 8)).model.graph
             if node.op_type == "Conv"]  # fmt: skip
    assert sorted(sizes) == [8, 16]


def test_depthwise_kernels_get_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def depthwise() -> int:
        model = rewritten(net("skip"), samples_of("skip", 4), PruneChannels(0.1, 8)).model
        return next(len(constant(node.inputs[1])) for node in model.graph if node.outputs[0].name == "d")

    with pytest.raises(RecipeError, match="% of the products are left"):
        depthwise()
    monkeypatch.setattr("ptq.passes.channels.cheapest._is_grouped", lambda _: False)
    assert depthwise() == 4


def test_nothing_happens_where_few_enough_products_are_left_already() -> None:
    model, samples = net("chain"), samples_of("chain")
    assert rewritten(model, samples, PruneChannels(1.0)).model is model


def test_what_carries_nothing_counts_as_gone() -> None:
    """The share is one of the model as it came, and the note of both steps names the same channels as one."""
    model, samples = net("chain"), samples_of("chain")
    weight = constant(model.graph.initializers["w1"])
    silent = np.where(np.arange(16).reshape(-1, 1, 1, 1) < 4, 0, weight).astype(np.float32)
    model.graph.initializers["w1"].const_value = ir.tensor(silent, name="w1")
    model.graph.initializers["b1"].const_value = ir.tensor(np.zeros(16, np.float32), name="b1")
    squeezed = rewritten(model, samples, Squeeze(lanes=4))
    assert squeezed.whole is model

    class Both:
        def rewrite(self, state: Any, calibration: Any) -> Any:
            return PruneChannels(0.6, 4).rewrite(Squeeze(lanes=4).rewrite(state, calibration), calibration)

    both = rewritten(model, samples, Both())
    assert both.whole is model
    assert 0.4 * count(model, samples[0]) < count(both.model, samples[0]) <= 0.6 * count(model, samples[0])
    gone = left_of(both.model)["r", 1].mask
    assert gone[:4].all()
    assert gone[:16].sum() == 16 - len(constant(both.model.graph.initializers["w1"]))


def test_where_no_channel_may_go_there_is_no_share() -> None:
    single = model_from_text("net (float[N, 3, 8, 8] x) => (float[N, 16, 8, 8] y) { y = Conv (x, w) }",
                             {"w": random((16, 3, 1, 1))})  # fmt: skip
    with pytest.raises(RecipeError, match="there is no channel that may go; leave out --max-macs"):
        rewritten(single, samples_of("chain"), PruneChannels(0.9))


def test_a_share_out_of_reach_names_the_least() -> None:
    with pytest.raises(RecipeError, match=r"max_macs is 0.01; .*% of the products are left .* --max-macs \d+%$"):
        rewritten(net("chain"), samples_of("chain"), PruneChannels(0.01))


@pytest.mark.parametrize("weight_only", [False, True], ids=["static", "weights"])
def test_quantize_prunes_before_anything_else(weight_only: bool) -> None:
    model, samples = net("chain"), samples_of("chain")
    asked = Recipe(weights=Weights(Rtn()), weight_only=weight_only, max_macs=0.7, goals=EASY)
    result = quantize(model, samples, asked)
    assert any("layers were refitted" in note for note in result.report.notes)
    assert result.report.recipe["max_macs"] == 0.7
    assert result.report.verdict.passed
    again = quantize(model, samples, recipe_from(recipe_to(asked), "card"))
    assert again.delivery.data == result.delivery.data


def test_a_goal_that_is_missed_is_no_error() -> None:
    result = squeeze(net("chain"), samples_of("chain"), max_macs=0.5, goals=Goals(min_sqnr_db=90))
    assert result.report.verdict.word == "goal missed"


def test_no_layer_in_float_is_advised_against_what_left() -> None:
    asked = Recipe(weights=Weights(Rtn(), bits=4), max_macs=0.6, goals=Goals(90))
    result = quantize(net("chain"), samples_of("chain"), asked, advises=True)
    assert result.report.verdict.word == "goal missed"
    assert not [each.text for each in result.report.verdict.findings if "--exclude" in each.text]


def test_diff_blames_no_layer_for_what_left(tmp_path: Path) -> None:
    model, samples = net("chain"), samples_of("chain")
    quantize(model, samples, Recipe(weights=Weights(Rtn()), max_macs=0.6, goals=EASY)).save(tmp_path / "q.onnx")
    found = diff(model, tmp_path / "q.onnx", samples)
    assert any("layers were fitted to fewer channels" in note for note in found.notes)
    assert any("not those of the float model" in note for note in found.notes)
    assert not [each.text for each in found.findings if "of its weights" in each.text]


def test_a_pruned_float_model_is_the_float_model_of_what_comes() -> None:
    model, samples = net("chain"), samples_of("chain")
    pruned = squeeze(model, samples, max_macs=0.6, goals=EASY).delivery.data
    quantized = quantize(pruned, samples, Recipe(weights=Weights(Rtn()))).delivery.data
    assert quantized is not None
    assert not any("fitted to fewer" in note for note in diff(pruned, quantized, samples).notes)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"max_macs": 0.8}, "no goal says how much may be lost; add --max-drop, --min-agreement or --min-sqnr-db"),
        ({"max_macs": 0.8, "goals": Goals(max_latency_ratio=0.5)}, "no goal"),
        ({"squeeze": "fewest"}, "squeeze 'fewest' takes away .* no goal says"),
        ({"squeeze": "fewest", "max_macs": 0.8, "goals": EASY}, "leave one of them"),
        ({"squeeze": "fewest", "search": True, "goals": EASY}, "leave one of them"),
        ({"max_macs": 1.5, "goals": EASY}, "max_macs is 1.5; expected a share"),
        ({"max_macs": 0.0, "goals": EASY}, "max_macs is 0.0; expected a share"),
    ],
)
def test_never_without_a_goal(settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(**settings_)


def test_random_data_and_integers_are_refused() -> None:
    with pytest.raises(PtqError, match="random data shows nothing; give --data"):
        quantize(net("chain"), None, Recipe(max_macs=0.8, goals=EASY))
    done = quantize(net("chain"), samples_of("chain"), Recipe(weights=Weights(Rtn()))).delivery.data
    with pytest.raises(UnsupportedModelError, match=r"quantized already.*leave out --max-macs"):
        quantize(done, samples_of("chain"), Recipe(max_macs=0.8, goals=EASY))


@pytest.mark.parametrize("verb", ["quantize", "squeeze"])
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--max-macs", "70%", "--min-sqnr-db", "-50"), 0, "layers were refitted"),
        (("--max-macs", "0.7", "--min-sqnr-db", "90"), 1, "goal missed"),
        (("--squeeze", "sqnr <= 10"), 2, "--squeeze is 'sqnr <= 10'; expected for example"),
        (("--max-macs", "70%"), 2, "no goal says how much may be lost"),
        (("--max-macs", "much", "--min-sqnr-db", "10"), 2, "--max-macs is 'much'; expected a share"),
    ],
    ids=["kept", "missed", "no such goal", "no goal", "no share"],
)
def test_on_the_command_line(tmp_path: Path, verb: str, options: tuple[str, ...], code: int, words: str) -> None:
    ir.save(net("chain"), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in samples_of("chain")]))
    fast = ("--fast",) if verb == "quantize" else ()
    arguments = (verb, str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "q.onnx"))
    done = CliRunner().invoke(main, [*arguments, *fast, *options])
    assert done.exit_code == code, done.output
    assert (tmp_path / "q.onnx").exists() == (code == 0)
    if code == 2:
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    else:
        assert words in next(tmp_path.glob("*.card.json")).read_text()


def test_a_goal_finds_the_fewest_products_that_keep_it() -> None:
    model, samples = net("chain"), samples_of("chain")
    asked = Recipe(weights=Weights(Rtn()), squeeze="fewest", goals=Goals(min_sqnr_db=28.0))
    result = quantize(model, samples, asked)
    share, tries = result.report.recipe["max_macs"], result.report.tries
    assert result.report.verdict.passed
    assert result.report.recipe["squeeze"] == "auto"
    assert tries[0].passed
    assert 0 < share < 1
    assert {each.passed for each in tries} == {True, False}
    assert quantize(model, samples, recipe_from(result.report.recipe, "card")).delivery.data == result.delivery.data


def test_where_nothing_keeps_the_goal_nothing_is_taken() -> None:
    missed = quantize(
        net("chain"), samples_of("chain"), Recipe(weights=Weights(Rtn()), squeeze="fewest", goals=Goals(90))
    )
    assert missed.report.verdict.word == "goal missed"
    assert "max_macs" not in missed.report.recipe
    assert len(missed.report.tries) == 1
    found = squeeze(net("chain"), samples_of("chain"), "fewest", goals=Goals(15))
    assert found.report.recipe["max_macs"] < 1
    assert found.report.verdict.passed


def test_a_search_reads_data_more_than_once() -> None:
    with pytest.raises(RecipeError, match="data more than once"):
        quantize(net("chain"), iter(samples_of("chain")), Recipe(squeeze="fewest", goals=EASY))
    with pytest.raises(RecipeError, match="random numbers show nothing; give --data"):
        squeeze(net("chain"), None, "fewest", goals=EASY)


def test_what_was_calibrated_before_gives_the_same_model(tmp_path: Path) -> None:
    model, samples = net("chain"), samples_of("chain", 80)
    asked = Recipe(weights=Weights(Rtn()), max_macs=0.6, goals=EASY)
    parts = [calibrate(model, samples, asked, shard=Shard(index, 2)) for index in (0, 1)]
    parts[0].merge(parts[1]).save(tmp_path / "all.calib")
    known = quantize(model, samples, asked, calibration=tmp_path / "all.calib")
    assert known.delivery.data == quantize(model, samples, asked).delivery.data
