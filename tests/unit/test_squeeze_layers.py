"""Channels that carry nothing, planted around other layers than plain convolutions, and what has to stay."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.builders import Arrays, random
from tests.squeezing import ALL, CHANNELS, FACTOR, Net, Plants, check, require_same, squeezed

SEEDS = range(10)
WIDTH = 6


def words(text: str, weights: Arrays, gone: Any, free: Any, **more: Any) -> Net:
    """A model of sequences of 5 vectors of 6 numbers."""
    return Net(
        f"net (float[N, 5, {WIDTH}] x) => (float[N, A, B] y) {{ {text} }}", weights, gone, free, (5, WIDTH), **more
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bias", ["", "a = Add (m, b)", "a = Add (b, m)"])
@pytest.mark.parametrize("behind", ["y = MatMul (z, v)", "o = MatMul (z, v)  y = Add (o, d)"])
def test_hidden_units(seed: int, bias: str, behind: str) -> None:
    plants = Plants(seed, ALL if bias else ("duplicate", "scaled"))
    weight, offset = plants.layer(WIDTH, CHANNELS, axis=1)
    weights = {"w": weight, "b": offset, "v": random((CHANNELS, 4), seed), "d": random((4,), seed + 1)}
    used = {name: weights[name] for name in ("w", "v", *("b" * bool(bias)), *("d" * ("d)" in behind)))}
    gone = {"w": {1: plants.gone}, "b": {0: plants.gone}, "v": {0: plants.gone}}
    check(words(f"{'m' if bias else 'a'} = MatMul (x, w)  {bias}  z = Relu (a)  {behind}", used, gone, ("v", "d")))


@pytest.mark.parametrize("seed", SEEDS)
def test_hidden_units_of_a_gelu(seed: int) -> None:
    plants = Plants(seed, ("dead", "constant", "duplicate"))
    weight, offset = plants.layer(WIDTH, CHANNELS, axis=1)
    weights = {"w": weight, "b": offset, "v": random((CHANNELS, 4), seed), "h": np.float32(0.5), "i": np.float32(1)}
    gone = {"w": {1: plants.gone}, "b": {0: plants.gone}, "v": {0: plants.gone}}
    text = """m = MatMul (x, w)  a = Add (m, b)  e = Erf (a)  f = Add (e, i)  g = Mul (a, f)  z = Mul (g, h)
        y = MatMul (z, v)"""
    check(words(text, weights, gone, ("v",)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flat", ["f = Flatten (q)", "f = Reshape (q, shape)", "f = Reshape (q, whole)"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_products_behind_maps(seed: int, flat: str, transposed: int) -> None:
    plants, bias = Plants(seed), ("", ", d", ", one")[seed % 3]
    weight, offset = plants.layer(CHANNELS, 3, 3, 3)
    behind = [place * 36 + i for place in plants.gone for i in range(36)]
    inner = random((CHANNELS * 36, 5), seed, 0.1)
    weights = {
        "w": weight, "b": offset, "v": inner.T.copy() if transposed else inner, "d": random((5,), seed + 1),
        "one": np.float32([0.3]), "shape": np.array([0, -1]), "whole": np.array([-1, CHANNELS * 36]),
    }  # fmt: skip
    text = f"""net (float[N, 3, 8, 8] x) => (float[N, 5] y) {{
        a = Conv (x, w, b)  q = Relu (a)  {flat}
        y = Gemm <transB = {transposed}, alpha = 0.5, beta = 2.0> (f, v{bias}) }}"""
    used = {name: array for name, array in weights.items() if name in text}
    check(Net(text, used, {"w": {0: plants.gone}, "b": {0: plants.gone}, "v": {transposed: behind}}, ("v", "d", "one")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["constant", "duplicate", "scaled"])
def test_heads_whose_result_is_known(seed: int, kind: str) -> None:
    heads, each = 4, 3
    leader, head = sorted(np.random.default_rng(seed).permutation(heads)[:2].tolist())
    rows, of = slice(head * each, (head + 1) * each), slice(leader * each, (leader + 1) * each)
    weights: Arrays = {name: random((WIDTH, heads * each), seed + i) for i, name in enumerate(("wq", "wk", "wv"))}
    weights["bv"] = random((heads * each,), seed + 5)
    if kind == "constant":
        weights["wv"][:, rows] = 0
    else:
        weights["wq"][:, rows], weights["wk"][:, rows] = weights["wq"][:, of], weights["wk"][:, of]
        factor = FACTOR if kind == "scaled" else 1
        weights["wv"][:, rows], weights["bv"][rows] = weights["wv"][:, of] * factor, weights["bv"][of] * factor
    weights |= {"wo": random((heads * each, 4), seed + 6), "bo": random((4,), seed + 7)}
    weights |= {"split": np.array([0, 0, heads, each]), "merge": np.array([0, 0, heads * each])}
    gone = list(range(rows.start, rows.stop))
    cut = {name: {1: gone} for name in ("wq", "wk", "wv")} | {"bv": {0: gone}, "wo": {0: gone}}
    text = """q = MatMul (x, wq)  qr = Reshape (q, split)  qh = Transpose <perm = [0, 2, 1, 3]> (qr)
        k = MatMul (x, wk)  kr = Reshape (k, split)  kh = Transpose <perm = [0, 2, 3, 1]> (kr)
        m = MatMul (x, wv)  v = Add (m, bv)  vr = Reshape (v, split)  vh = Transpose <perm = [0, 2, 1, 3]> (vr)
        s = MatMul (qh, kh)  p = Softmax (s)  o = MatMul (p, vh)  t = Transpose <perm = [0, 2, 1, 3]> (o)
        f = Reshape (t, merge)  u = MatMul (f, wo)  y = Add (u, bo)"""
    check(words(text, weights, cut, ("wo", "bo")))


EXTENTS = "n = Shape <start = 0, end = 1> (x)  i = Concat <axis = 0> (two, n, wide)"
STATES = {
    "none": ("", ""),
    "zeros": ("", ", , zeros"),
    "made": (f"{EXTENTS}  s0 = ConstantOfShape (i)", ", , s0"),
    "laid out": (f"{EXTENTS}  s0 = Expand (zero, i)", ", , s0"),
}  # fmt: skip


def recurrent(kind: str, seed: int, directions: int, plants: Plants, states: str = "none") -> Net:
    """A recurrent layer with cells that stay 0 and a cell that repeats another, a product behind."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    rng = np.random.default_rng(seed)
    shapes = {"w": (gates, WIDTH), "r": (gates, CHANNELS), "b": (2 * gates, 1)}
    parts = {
        k: (rng.standard_normal((directions, s[0], CHANNELS, s[1])) * 0.5).astype(np.float32) for k, s in shapes.items()
    }
    at = plants.at
    parts["r"][..., at["duplicate"]] *= 0.5
    for array in parts.values():
        array[:, :, at["duplicate"]] = array[:, :, at["leader"]]
    dead = at["dead"]
    fed = {"LSTM": 3, "GRU": 2}[kind]  # what a cell is fed is tanh(0), through its gates
    for name, rows in (("w", [fed]), ("r", [fed]), ("b", [fed, fed + gates])):
        parts[name][:, rows, dead] = 0
    whole = {k: array.reshape(directions, -1, array.shape[-1]) for k, array in parts.items()}
    whole["b"] = whole["b"][..., 0]
    whole |= {"v": random((CHANNELS * directions, 4), seed + 7), "d": random((4,), seed + 8)}
    whole["flat"] = np.array([0, 0, -1])
    way = "bidirectional" if directions == 2 else "forward"
    linear = ", linear_before_reset = 1" if kind == "GRU" else ""
    before, state = STATES[states]
    made = {
        "zeros": np.zeros((directions, 1, CHANNELS), np.float32), "two": np.array([directions]),
        "zero": np.zeros(1, np.float32), "wide": np.array([CHANNELS]),
    }  # fmt: skip
    whole |= {name: array for name, array in made.items() if name in re.findall(r"\w+", before + state)}
    text = f"""xt = Transpose <perm = [1, 0, 2]> (x)  {before}
        h = {kind} <hidden_size = {CHANNELS}, direction = "{way}"{linear}> (xt, w, r, b{state})
        ht = Transpose <perm = [2, 0, 1, 3]> (h)  f = Reshape (ht, flat)  o = MatMul (f, v)  y = Add (o, d)"""
    gone = plants.gone

    def gated(count: int) -> list[int]:
        return [place + i * CHANNELS for i in range(count) for place in gone]

    cut = {
        "w": {1: gated(gates)},
        "r": {1: gated(gates), 2: gone},
        "b": {1: gated(2 * gates)},
        "v": {0: gated(directions)},
    }
    return words(text, whole, cut, ("v", "d", "r"))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("directions", [1, 2])
def test_cells(kind: str, directions: int, seed: int) -> None:
    states = list(STATES)[seed % len(STATES)]
    net = recurrent(kind, seed, directions, Plants(seed, ("dead", "duplicate")), states)
    assert [node for node in check(net).graph if node.op_type in ("ConstantOfShape", "Expand")] == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bias", ["", ", rb"])
def test_inputs_of_recurrent_layers(kind: str, bias: str, seed: int) -> None:
    plants = Plants(seed)
    weight, offset = plants.layer(WIDTH, CHANNELS, axis=1)
    gates, cells = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 5
    weights = {
        "w": weight, "b": offset, "rw": random((1, gates * cells, CHANNELS), seed),
        "rb": random((1, 2 * gates * cells)), "rr": random((1, gates * cells, cells), seed + 1),
    }  # fmt: skip
    text = f"""xt = Transpose <perm = [1, 0, 2]> (x)  m = MatMul (xt, w)  a = Add (m, b)  z = Relu (a)
        h = {kind} <hidden_size = {cells}> (z, rw, rr{bias})  s = Squeeze (h, one)
        y = Transpose <perm = [1, 0, 2]> (s)"""
    used = {name: array for name, array in weights.items() if name != "rb" or bias} | {"one": np.array([1])}
    gone = {"w": {1: plants.gone}, "b": {0: plants.gone}, "rw": {2: plants.gone}}
    check(words(text, used, gone, ("rw", "rb")))


@pytest.mark.parametrize("seed", SEEDS)
def test_cells_that_differ_in_what_they_reset_stay(seed: int) -> None:
    plants = Plants(seed, ("dead", "duplicate"))
    net = recurrent("GRU", seed, 1, plants)
    reset = CHANNELS + plants.at["duplicate"]
    net.weights["w"][:, reset] *= -1
    net = replace(net, text=net.text.replace(", linear_before_reset = 1", ""))
    after = squeezed(net)
    assert after.graph.initializers["w"].shape == (1, 3 * (CHANNELS - 1), WIDTH)
    require_same(net.model(), after, net.samples(3, seed=77))
