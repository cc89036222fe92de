"""Smoothing, values through attention, outlier channels beside products, padding: exact rewritings that gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq import PtqError, Recipe, bench, quantize
from ptq.analysis.bench import Setting
from ptq.calibration.sample import without_padding
from ptq.core.channel_extremes import ChannelExtremes
from ptq.core.smoothing import Reader, SmoothingTerms, best_smoothing
from ptq.models.source import InputSpec
from ptq.passes import prepare
from ptq.passes.check_equivalence import float_outputs, require_same
from ptq.passes.linear import name_of
from ptq.passes.placing import place
from ptq.passes.smooth_values import value_projections
from ptq.runtime import open_session
from ptq.transforms import SmoothProducts
from tests.builders import SWIGLU_WIDTH, attention, feeds, model_from_text, random, swiglu
from tests.transforming import rewritten

KEEP_ALL = lambda _node: None  # noqa: E731 - a selector that leaves nothing out


def outlier_net(gain: float = 60.0, width: int = 128) -> ir.Model:
    """Wide - Erf gate - narrow, where some channels of the wide part are far wider than the others."""
    text = """
    net (float[B, S, 16] x) => (float[B, S, 16] y) {
        f = MatMul (x, w0)
        fb = Add (f, b0)
        e = Erf (fb)
        z = Mul (fb, e)
        o = MatMul (z, w1)
        ob = Add (o, b1)
        y = Add (ob, x)
    }"""
    first = random((16, width), 1)
    first[:, 5] *= gain
    weights = {"w0": first, "b0": random((width,), 2), "w1": random((width, 16), 3), "b1": random((16,), 4)}
    return model_from_text(text, weights)


def sqnr_db(result: Any, model: ir.Model, samples: list[dict[str, Any]]) -> float:
    session, real = result.session(), open_session(ir.to_proto(model).SerializeToString())
    pairs = [(session.run(None, feed)[0], real.run(None, feed)[0]) for feed in samples]
    error = sum(np.square(a - b).sum() for a, b in pairs)
    return float(10 * np.log10(sum(np.square(b).sum() for _, b in pairs) / error))


@given(st.integers(0, 1000))
def test_extremes_merge_like_concatenation(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((3, 5, 4))
    merged = ChannelExtremes.of(rows[0]).merge(ChannelExtremes.of(rows[1:]))
    whole = ChannelExtremes.of(rows)
    for name in ("low", "high", "square", "count"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name))
    np.testing.assert_allclose(whole.over(np.full(4, 2.0)).square * 4, whole.square)


def halves(rows: Any) -> tuple[ChannelExtremes, ChannelExtremes]:
    return ChannelExtremes.of(rows[::2]), ChannelExtremes.of(rows[1::2])


def test_the_expected_gain_is_a_real_one() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (4000, 128)) * np.where(np.arange(128) % 64, 1.0, 30.0)
    weight = random((128, 32), 1)
    found = best_smoothing([Reader.of_matrix(weight)], halves(rows), SmoothingTerms(1.0, may_stand_aside=False))
    assert found.gain_db > 5

    def error(values: Any, matrix: Any) -> float:
        step = (values.max() - values.min()) / 255
        steps = np.abs(matrix).max(0) / 127
        rounded = np.round(values / step) * step @ (np.round(matrix / steps) * steps)
        return float(np.square(rounded - rows @ weight).mean())

    gained = 10 * np.log10(error(rows, weight) / error(rows / found.scale, weight * found.scale[:, None]))
    assert gained == pytest.approx(found.gain_db, abs=1.5)


def test_even_channels_are_left_alone() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (400, 128))
    found = best_smoothing(
        [Reader.of_matrix(random((128, 32), 1))], halves(rows), SmoothingTerms(1.0, may_stand_aside=True)
    )
    assert found.gain_db == 0
    assert not len(found.aside)
    assert (found.scale == 1).all()


def test_the_widest_channels_stand_aside() -> None:
    rows = np.random.default_rng(0).standard_normal((400, 128))
    rows[:, [7, 90]] *= 200
    found = best_smoothing(
        [Reader.of_matrix(random((128, 32), 1))], halves(rows), SmoothingTerms(1.0, may_stand_aside=True)
    )
    assert found.aside.tolist() == [7, 90]


def test_outliers_cost_little_and_other_readers_see_the_same() -> None:
    model, samples = outlier_net(), feeds(32, 6, 16)
    result = quantize(model, samples)
    names = {name_of(node) for node in result.delivery.model.graph}
    assert "o_outliers" in names
    assert any("z [5" in note for note in result.report.notes)
    assert result.report.left_float["o_outliers"] == "carries outlier channels"
    assert sqnr_db(result, model, samples) > 36
    plain = quantize(model, samples, Recipe(exclude=("o",)))  # the layer itself in float
    assert "o_outliers" not in {name_of(node) for node in plain.delivery.model.graph}


def test_a_normalisation_that_nobody_else_reads_takes_the_scale() -> None:
    text = """
    net (float[B, S, 64] x) => (float[B, S, 8] y) {
        n = LayerNormalization <axis = -1> (x, g, b)
        y = MatMul (n, w)
    }"""
    scale = np.where(np.arange(64) == 7, 40.0, 1.0).astype(np.float32)
    model = model_from_text(text, {"g": scale, "b": random((64,), 2), "w": random((64, 8), 3)})
    samples = feeds(16, 5, 64)
    prepared, _ = prepare(model, samples[0])
    balanced = rewritten(prepared, samples, SmoothProducts())
    assert [node.op_type for node in balanced.model.graph] == ["LayerNormalization", "MatMul"]
    assert balanced.notes
    require_same("balance", float_outputs(model, samples[0]), float_outputs(balanced.model, samples[0]))


def test_values_of_an_attention_are_found_and_scaled() -> None:
    model, samples = attention(), feeds(16, 7, 16)
    prepared, _ = prepare(model, samples[0])
    assert value_projections(prepared) == {"u": "v"}
    balanced = rewritten(prepared, samples, SmoothProducts())
    require_same("balance", float_outputs(model, samples[0]), float_outputs(balanced.model, samples[0]))


def test_scales_of_gated_values_cost_nothing_at_run_time() -> None:
    model = swiglu(30.0)
    samples = [{"x": random((8, 32, SWIGLU_WIDTH), seed)} for seed in range(16)]
    balanced = rewritten(model, samples, SmoothProducts())
    require_same("test", float_outputs(model, samples[0]), float_outputs(balanced.model, samples[0]))
    assert any("channels of 1 attention and gated values" in note for note in balanced.notes)
    assert [node.op_type for node in balanced.model.graph] == [node.op_type for node in model.graph]


def test_heads_in_another_order_are_left_alone() -> None:
    """The channels behind the attention are not those of the values: a scale must not move."""
    text = """
    net (float[1, 4, 16] x) => (float[1, 4, 16] y) {
        v = MatMul (x, wv)
        s = MatMul (x, xt)
        p = Softmax <axis = -1> (s)
        o = MatMul (p, v)
        a = Reshape (o, two)
        b = Transpose <perm = [0, 1, 3, 2]> (a)
        c = Reshape (b, back)
        y = MatMul (c, wo)
    }"""
    wide = random((16, 16), 1)
    wide[:, 3] *= 50
    weights = {
        "wv": wide, "wo": random((16, 16), 2), "xt": random((1, 16, 4), 3),
        "two": np.array([1, 4, 2, 8]), "back": np.array([1, 4, 16]),
    }  # fmt: skip
    model, samples = model_from_text(text, weights), feeds(16, 4, 16)
    prepared, _ = prepare(model, samples[0])
    assert value_projections(prepared) == {"y": "v"}
    balanced = rewritten(prepared, samples, SmoothProducts())
    assert not any("gated values" in note for note in balanced.notes)
    require_same("balance", float_outputs(model, samples[0]), float_outputs(balanced.model, samples[0]))


def test_ranges_of_products_cover_everything_seen() -> None:
    model = attention()
    prepared, _ = prepare(model, feeds(1, 7, 16)[0])
    placement = place(prepared)
    assert placement.only_products == frozenset(range(len(placement.groups)))


def specs(*names: str, length: int | None = None) -> list[InputSpec]:
    return [InputSpec(name, np.dtype("int64"), (None, length)) for name in names]


@pytest.mark.parametrize(
    ("mask", "kept"),
    [([1, 1, 0, 0], 2), ([1, 1, 1, 1], 4), ([0, 1, 0, 0], 2), ([0, 0, 0, 0], 4), ([1, 0, 1, 0], 3), ([2, 1, 0, 0], 4)],
)
def test_padding_is_cut_where_the_mask_ends(mask: list[int], kept: int) -> None:
    feed = {"ids": np.arange(4)[None], "attention_mask": np.array([mask])}
    cut = without_padding(feed, specs("ids", "attention_mask"))
    assert {array.shape for array in cut.values()} == {(1, kept)}


def test_padding_stays_where_lengths_are_fixed_or_differ() -> None:
    feed = {"ids": np.arange(4)[None], "attention_mask": np.array([[1, 1, 0, 0]])}
    assert without_padding(feed, specs("ids", "attention_mask", length=4)) is feed
    longer = feed | {"attention_mask": np.array([[1, 1, 1, 1, 0, 0]])}  # a cache is in front
    assert without_padding(longer, specs("ids", "attention_mask")) is longer
    assert without_padding({"ids": feed["ids"]}, specs("ids"))["ids"].shape == (1, 4)


def test_a_batch_to_be_timed_keeps_its_padding(tmp_path: Path) -> None:
    text = """
    m (int64[N, S] ids, int64[N, S] attention_mask) => (float[N, S, 8] y) {
        x = Gather (table, ids)
        y = MatMul (x, w)
    }"""
    path = tmp_path / "m.onnx"
    ir.save(model_from_text(text, {"table": random((50, 8), 1), "w": random((8, 8), 2)}), path)
    ids = np.ones((3, 6), np.int64)
    mask = (np.arange(6) < np.array([[2], [4], [6]])).astype(np.int64)
    found, _ = bench([path], {"ids": ids, "attention_mask": mask}, batch=3, setting=Setting(budget_seconds=0.05))
    assert found.batch == 3
    ragged = [{"ids": ids[:1, :n], "attention_mask": ids[:1, :n]} for n in (2, 3)]
    with pytest.raises(PtqError, match="different shapes"):
        bench([path], ragged, batch=2)
