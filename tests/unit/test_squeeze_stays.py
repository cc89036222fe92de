"""Channels that look as if they carried nothing, and have to stay; odd shapes of networks around those that leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptq.transforms.squeeze import Squeeze
from tests.builders import Arrays, feeds, model_from_text, random
from tests.squeezing import CHANNELS, Net, Plants, check, require_same, squeezed
from tests.transforming import rewritten

SEEDS = range(10)
HEAD = "net (float[N, 3, 8, 8] x) => (float[N, A, B, C] y) { a = Conv (x, w, b)  r = Relu (a)"


def conv(rest: str, plants: Plants, gone: Any, free: Any = ("v", "d"), head: str = HEAD, **more: Any) -> Net:
    """A convolution with planted channels, and anything behind; `gone` of what is not named otherwise is planted."""
    weight, bias = plants.layer(CHANNELS, 3, 3, 3)
    arrays = {"w": weight, "b": bias, "v": random((6, CHANNELS, 1, 1), plants.seed + 1), "d": random((6,), plants.seed)}
    arrays |= more
    text = f"{head}  {rest} }}"
    return Net(text, {name: array for name, array in arrays.items() if f" {name}" in text}, gone, free)


def everywhere(gone: list[int]) -> dict[str, dict[int, list[int]]]:
    return {"w": {0: gone}, "b": {0: gone}, "v": {1: gone}}


def untouched(net: Net) -> None:
    """Nothing may leave: the model comes back as the object that it was."""
    model = net.model()
    assert rewritten(model, net.samples(), Squeeze(lanes=1)).model is model


@pytest.mark.parametrize("seed", SEEDS)
def test_constants_in_front_of_zeros_are_carried_by_one_of_them(seed: int) -> None:
    plants = Plants(seed)
    weight, bias = plants.layer(CHANNELS, 3, 3, 3)
    other = max(set(range(CHANNELS)) - set(plants.at.values()))
    weight[other], bias[other] = 0, 0.4
    gone = sorted({*plants.gone, other} - {min(plants.at["constant"], other)})
    shape = random((6, CHANNELS, 3, 3), seed + 1)
    check(conv("y = Conv <pads = [1, 1, 1, 1]> (r, v, d)", plants, everywhere(gone), w=weight, b=bias, v=shape))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_transposed_convolution_in_front_and_behind(seed: int) -> None:
    plants = Plants(seed)
    weight, bias = plants.layer(3, CHANNELS, 2, 2, axis=1)
    gone = plants.without("constant")
    text = "net (float[N, 3, 8, 8] x) => (float[N, A, B, C] y) { a = ConvTranspose <strides = [2, 2]> (x, w, b)"
    net = conv(
        "r = Relu (a)  y = ConvTranspose (r, v, d)", plants, {"w": {1: gone}, "b": {0: gone}, "v": {0: gone}},
        head=text, w=weight, b=bias, v=random((CHANNELS, 6, 2, 2), seed),
    )  # fmt: skip
    check(net)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_whole_group_leaves(op: str, seed: int) -> None:
    groups, dead = 4, seed % 4
    rows = [3 * dead + i for i in range(3)]
    shape = (CHANNELS, 3, 3, 3)
    bias = random((CHANNELS,), seed)
    bias[rows] = -40
    bias[(rows[0] + 5) % CHANNELS] = -40  # alone in its group
    net = conv(
        f"k = {op} <group = {groups}> (r, g, e)  z = Relu (k)  y = Conv (z, v, d)", Plants(seed, ()),
        everywhere(rows) | {"g": {0: rows}, "e": {0: rows}}, g=random(shape, seed + 3), e=bias,
    )  # fmt: skip
    check(net)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, seed: int) -> None:
    channel, plants = seed % 3, Plants(seed, ())
    rows = [channel + 3 * i if mode == "DCR" else 4 * channel + i for i in range(4)]
    weight, bias = plants.layer(CHANNELS, 3, 3, 3)
    bias[[*rows, (rows[0] + 1) % CHANNELS]] = -40  # the last one has live neighbors
    net = conv(
        f'z = DepthToSpace <blocksize = 2, mode = "{mode}"> (r)  y = Conv (z, v, d)', plants,
        {"w": {0: rows}, "b": {0: rows}, "v": {1: [channel]}}, w=weight, b=bias, v=random((6, 3, 1, 1), seed),
    )  # fmt: skip
    check(net)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", ["N, 3, H, W", "2, 3, 8, 8", "N, 3, 8, 8"])
def test_any_batch_and_extents(shape: str, seed: int) -> None:
    plants = Plants(seed)
    head = HEAD.replace("N, 3, 8, 8", shape)
    net = conv("y = Conv (r, v, d)", plants, everywhere(plants.gone), head=head)
    if shape.startswith("2"):
        samples = [{"x": random((2, 3, 8, 8), seed + i, 1.0)} for i in range(24)]
        after = rewritten(net.model(), samples, Squeeze(lanes=1)).model
        assert after.graph.initializers["v"].shape == (6, CHANNELS - 4, 1, 1)
        require_same(net.model(), after, samples[:2])
    else:
        check(net)


ASKED = {
    "one": "g = Gather (s, zero)  f = Cast <to = 1> (g)  c = Conv (r, v, d)  y = Mul (c, f)",
    "some": "g = Slice (s, two, four)  f = Cast <to = 1> (g)  c = Conv (r, v, d)  i = ReduceSum (f)  y = Mul (c, i)",
    "returned": "g = Slice (s, zeros, two)  h = Concat <axis = 0> (g, twelve)  "
    "z = Resize (r, , , h)  y = Conv (z, v, d)",
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ASKED)
def test_shapes_that_are_asked_for(name: str, seed: int) -> None:
    plants = Plants(seed)
    head = HEAD.replace("N, 3, 8, 8", "N, 3, H, W")
    net = conv(
        f"s = Shape (r)  {ASKED[name]}", plants, everywhere(plants.gone), head=head, zero=np.array(0),
        zeros=np.array([0]), two=np.array([2]), four=np.array([4]), twelve=np.array([12, 12]),
    )  # fmt: skip
    check(net)


@pytest.mark.parametrize("seed", SEEDS)
def test_several_readers(seed: int) -> None:
    plants = Plants(seed)
    gone = plants.without("constant")
    net = conv(
        "c1 = Conv (r, v, d)  c2 = Conv <pads = [1, 1, 1, 1]> (r, u, d)  k = Slice (c2, i, j, l)  y = Add (c1, k)",
        plants, everywhere(gone) | {"u": {1: gone}}, ("v", "u"), u=random((6, CHANNELS, 3, 3), seed),
        i=np.array([0, 0]), j=np.array([6, 6]), l=np.array([2, 3]),
    )  # fmt: skip
    check(net)


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_weights_and_biases(seed: int) -> None:
    plants = Plants(seed, ("dead", "constant"))
    net = conv(
        "a2 = Conv (x, w2, b2)  r2 = Relu (a2)  c1 = Conv (r, v, d)  c2 = Conv (r2, v, d)  y = Sub (c1, c2)", plants,
        everywhere(plants.gone) | {"w2": {0: plants.gone}, "b2": {0: plants.gone}}, ("v",),
        w2=Plants(seed + 50, ()).layer(CHANNELS, 3, 3, 3)[0] * (np.abs(plants.layer(CHANNELS, 3, 3, 3)[0]) > 0),
        b2=np.where(np.isin(np.arange(CHANNELS), plants.gone), -40, 0.1).astype(np.float32),
    )  # fmt: skip
    after = squeezed(net)
    assert after.graph.initializers["v"].shape == (6, CHANNELS - 2, 1, 1)
    require_same(net.model(), after, net.samples(3, seed=77))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bias", ["", ", d", ", one"])
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_a_layer_that_gets_a_bias_loses_channels_itself(kind: str, bias: str, seed: int) -> None:
    plants, behind = Plants(seed), Plants(seed + 70)
    v, _ = behind.layer(CHANNELS, CHANNELS)
    v[behind.at["dead"]] = 0
    v[:, plants.at["constant"]] += 0.1
    if bias:
        v[behind.at["constant"]] = 0
    v = v.T.copy() if kind == "MatMul" else v[..., None, None] if kind == "Conv" else v
    front = {
        "Conv": f"c = Conv (r, v{bias and ', d'})",
        "Gemm": f"p = GlobalAveragePool (r)  f = Flatten (p)  c = Gemm <transB = 1> (f, v{bias})",
        "MatMul": "p = GlobalAveragePool (r)  f = Flatten (p)  c = MatMul (f, v)",
    }[kind]
    last = "y = Conv (c, u)" if kind == "Conv" else "y = MatMul (c, u)"
    u = random((CHANNELS, 4), seed) if kind != "Conv" else random((4, CHANNELS, 1, 1), seed)
    head = HEAD.replace("float[N, A, B, C] y", "float[N, 4] y") if kind != "Conv" else HEAD
    net = conv(
        f"{front}  {last}", plants, {}, head=head, v=v, u=u, d=random((CHANNELS,), seed),
        one=np.array([0.3], np.float32),
    )  # fmt: skip
    after = squeezed(net)
    axis = 0 if kind == "MatMul" else 1
    assert after.graph.initializers["v"].shape[axis] == CHANNELS - 4  # type: ignore[index]
    assert after.graph.initializers["u"].shape[1 - axis if kind != "Conv" else 1] < CHANNELS  # type: ignore[index, operator]
    require_same(net.model(), after, net.samples(3, seed=77))


SINGLE = ("s = ReduceMax <axes = [1], keepdims = 1> (x)  t = Slice (s, i, j, l)  q = Mul (t, zero)  "
              "z = Concat <axis = 1> (q, r)  y = Conv (z, v, d)")  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_of_one_channel_stays_and_the_others_leave(seed: int) -> None:
    plants = Plants(seed)
    net = conv(
        SINGLE, plants, everywhere(plants.gone) | {"v": {1: [place + 1 for place in plants.gone]}},
        i=np.array([1, 1]), j=np.array([7, 7]), l=np.array([2, 3]), zero=np.float32(0),
        v=random((6, CHANNELS + 1, 1, 1), seed),
    )  # fmt: skip
    check(net)


@pytest.mark.parametrize("first", [True, False])
def test_a_single_channel_that_is_split_off_stays(first: bool) -> None:
    plants = Plants(3)
    weight, bias = plants.layer(CHANNELS, 3, 3, 3)
    place = 0 if first else CHANNELS - 1
    bias[place] = -40
    gone = sorted({*plants.gone} - {place})
    net = conv(
        "s1, s2 = Split <axis = 1> (r, parts)  c = Conv (r, v, d)  t = Concat <axis = 1> (s1, s2)  "
        "e = Conv (t, v, d)  y = Add (c, e)", plants, everywhere(gone), b=bias, w=weight,
        parts=np.array([1, CHANNELS - 1] if first else [CHANNELS - 1, 1]),
    )  # fmt: skip
    after = squeezed(net)
    assert after.graph.initializers["w"].shape[0] <= CHANNELS - 2  # type: ignore[operator]
    require_same(net.model(), after, net.samples(3, seed=77))


IF = """net (float[N, 3, 8, 8] x, bool p) => (float[N, A, B, C] y, float[N, D, E, F] q) {
    a = Conv (x, w, b)  r = Relu (a)
    q = If (p) <then_branch = t () => (float[N, D, E, F] m) { m = Neg (r) },
                else_branch = e () => (float[N, D, E, F] k) { k = Abs (r) }>
    y = Conv (r, v, d) }"""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "rest",
    [
        "r0 = Relu (a)  y = Neg (r0)",
        "n = LayerNormalization <axis = 1> (r, gain)  y = Conv (n, v, d)",
        "n = Softmax <axis = 1> (r)  y = Conv (n, v, d)",
        "m = ReduceMax <axes = [1], keepdims = 1> (r)  c = Conv (r, v, d)  y = Add (c, m)",
        "g = Shape (r)  k = Slice (g, start, end, start)  h = Concat <axis = 0> (k, six)  z = Resize (r, , , h)  "
        "k2 = Cast <to = 1> (k)  i = ReduceSum (k2)  c = Conv (z, v, d)  y = Mul (c, i)",
        "g = Shape (r)  h = Cast <to = 1> (g)  i = ReduceSum (h)  c = Conv (r, v, d)  y = Mul (c, i)",
        "s = Reshape (r, three)  t = Transpose <perm = [0, 2, 1, 3, 4]> (s)  u = Reshape (t, four)  y = Conv (u, v, d)",
        "s = Gather <axis = 1> (r, two)  c = Conv (r, v, d)  "
        "k = ReduceMean <axes = [1], keepdims = 1> (s)  y = Add (c, k)",
    ],
    ids=["output", "LayerNormalization", "Softmax", "ReduceMax", "half a Shape", "Shape", "shuffle", "mixed"],
)
def test_what_is_seen_elsewhere_stays(rest: str, seed: int) -> None:
    more: Arrays = {
        "gain": np.ones((CHANNELS, 6, 6), np.float32), "three": np.array([0, 3, 4, 6, 6]), "two": np.arange(CHANNELS),
        "start": np.array([0]), "end": np.array([2]), "six": np.array([6, 6]),
        "four": np.array([0, CHANNELS, 6, 6]),
    }  # fmt: skip
    untouched(conv(rest, Plants(seed), {}, **more))


def test_what_a_body_or_a_user_reads_stays() -> None:
    net = conv("", Plants(0), {})
    text = HEAD.replace("=> (float[N, A, B, C] y)", "=> (float[N, A, B, C] y, float[N, D, E, F] r)")
    untouched(conv("y = Conv (r, v, d)", Plants(0), {}, head=text))
    weights = dict(zip(("w", "b"), Plants(0).layer(CHANNELS, 3, 3, 3), strict=True)) | {
        "v": random((6, CHANNELS, 1, 1)), "d": random((6,)),
    }  # fmt: skip
    model = model_from_text(IF, weights)
    samples = [{**sample, "p": np.array(True)} for sample in net.samples()]
    assert rewritten(model, samples, Squeeze(lanes=1)).model is model


@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_in_one_of_two_writers_stays(seed: int) -> None:
    plants = Plants(seed, ("constant", "duplicate"))
    weight, bias = Plants(seed + 90, ()).layer(CHANNELS, 3, 3, 3)
    untouched(conv("a2 = Conv (x, w2, b2)  s = Add (r, a2)  y = Conv (s, v, d)", plants, {}, w2=weight, b2=bias))


def test_two_uses_of_one_value_by_a_product() -> None:
    weights = {"w": random((6, 6), 0), "b": np.array([-40, *[0.5] * 5], np.float32), "v": random((6, 6), 1)}
    text = """net (float[6, 6] x) => (float[6, A] y) {
        m = MatMul (x, w)  a = Add (m, b)  r = Relu (a)  t = MatMul (r, r)  y = MatMul (t, v) }"""
    model = model_from_text(text, weights)
    samples = [{"x": random((6, 6), i, 1.0)} for i in range(24)]
    assert rewritten(model, samples, Squeeze(lanes=1)).model is model


RARE = {
    "Relu": "r = Relu (a)  y = Conv (r, v, d)",
    "Concat": "r = Relu (a)  s = Relu (x)  t = Slice (s, i, j, l)  z = Concat <axis = 1> (r, t)  y = Conv (z, u, d)",
    "Flatten": "r = Relu (a)  f = Flatten (r)  y = Gemm (f, g)",
    "depthwise": "r = Relu (a)  k = Conv <group = 12> (r, e)  z = Relu (k)  y = Conv (z, v, d)",
    "gate": "r = Relu (a)  p = GlobalAveragePool (r)  h = HardSigmoid (p)  z = Mul (r, h)  y = Conv (z, v, d)",
    "Sigmoid": "r = Sigmoid (a)  y = Conv (r, v, d)",
    "HardSwish": "r = HardSwish (a)  y = Conv (r, v, d)",
    "Clip": "n = Neg (a)  m = Mul (n, hundred)  r = Clip (m, zero, one)  y = Conv (r, v, d)",
}  # fmt: skip


def rare(body: str, bias: float, seed: int, which: int, count: int = 512) -> tuple[Net, list[Arrays]]:
    """A channel that is far from moving, and one sample that moves it."""
    weight, offset = Plants(seed, ()).layer(CHANNELS, 3, 3, 3)
    place = seed % CHANNELS
    weight[place], offset[place] = 0.5, bias
    text = "net (float[N, 3, 4, 4] x) => (float[N, A, B, C] y) { a = Conv (x, w, b)"
    more: Arrays = {
        "u": random((6, CHANNELS + 3, 1, 1), seed), "g": random((CHANNELS * 4, 5), seed),
        "e": np.abs(random((CHANNELS, 1, 1, 1), 1)) + 0.1,
        "zero": np.float32(0), "one": np.float32(1), "hundred": np.float32(-1),
        "i": np.array([0, 0]), "j": np.array([2, 2]), "l": np.array([2, 3]),
    }  # fmt: skip
    head = text.replace("float[N, A, B, C]", "float[N, A]") if "Gemm" in body else text
    net = conv(body, Plants(seed, ()), {}, head=head, w=weight, b=offset, **more)
    samples = feeds(count, 3, 4, 4, seed=seed)
    samples[which]["x"] = np.abs(samples[which]["x"]) + 4
    return net, samples


@pytest.mark.parametrize("name", RARE)
@pytest.mark.parametrize("seed", range(3))
def test_a_channel_that_one_of_512_samples_moves_stays(name: str, seed: int) -> None:
    net, samples = rare(RARE[name], -45.0, seed, 511 - 100 * seed)
    model = net.model()
    assert rewritten(model, samples, Squeeze(lanes=1)).model is model


@pytest.mark.parametrize("name", [name for name in RARE if name != "Sigmoid"])
def test_a_channel_that_no_sample_moves_but_the_next_one_may_stays(name: str) -> None:
    net, samples = rare(RARE[name], 0.0, 1, 0, 128)
    del samples[0]
    net.weights["b"][1] = -max(_peak(sample["x"]) for sample in samples) - (3.0 if name == "HardSwish" else 0.0) - 1e-3
    model = net.model()
    assert rewritten(model, samples, Squeeze(lanes=1)).model is model
    net.weights["b"][1] -= 8.0
    assert rewritten(net.model(), samples, Squeeze(lanes=1)).model.graph.initializers["w"].shape[0] == CHANNELS - 1  # type: ignore[index]


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Softplus", "Elu"])
def test_functions_that_come_to_rest_have_edges_too(name: str) -> None:
    """Two samples far apart tell little of a third; many close together do."""
    weight, bias = Plants(0, ()).layer(CHANNELS, 3, 3, 3)
    weight[2], bias[2] = 0.5, -40
    net = conv(
        f"r = {name} (a)  y = Conv (r, v, d)", Plants(0, ()), {}, head=HEAD.partition("  r =")[0], w=weight, b=bias
    )
    samples = net.samples()
    assert rewritten(net.model(), samples, Squeeze(lanes=1)).model.graph.initializers["w"].shape[0] == CHANNELS - 1  # type: ignore[index]
    model = net.model()
    samples = [{"x": np.full((1, 3, 8, 8), level, np.float32) + 0.01 * random((1, 3, 8, 8))} for level in (-2.0, 1.6)]
    assert rewritten(model, samples, Squeeze(lanes=1)).model.graph.initializers["w"].shape[0] == CHANNELS  # type: ignore[index]


def _peak(x: Any) -> float:
    """What a kernel of halves makes of a sample: the largest sum of 3 x 3."""
    return max(float(0.5 * x[0, :, i : i + 3, j : j + 3].sum()) for i in range(2) for j in range(2))


def test_nothing_leaves_for_want_of_evidence() -> None:
    plants = Plants(0, ("dead", "duplicate"))
    net = conv("y = Conv (r, v, d)", plants, everywhere(plants.gone))
    model = net.model()
    assert rewritten(model, net.samples(1), Squeeze(lanes=1)).model is model  # one sample only
    untouched(conv("y = Conv (r, v, d)", Plants(0, ()), {}))


@pytest.mark.parametrize(("lanes", "left"), [(1, 8), (4, 8), (3, 9), (5, 10), (16, 12)])
def test_as_many_channels_stay_as_fill_the_kernels(lanes: int, left: int) -> None:
    net = conv("y = Conv (r, v, d)", Plants(2), everywhere(Plants(2).gone))
    after = rewritten(net.model(), net.samples(), Squeeze(lanes=lanes)).model
    assert after.graph.initializers["w"].shape[0] == left  # type: ignore[index]
    require_same(net.model(), after, net.samples(3, seed=77))


def test_one_channel_always_stays() -> None:
    weight, bias = Plants(0, ()).layer(CHANNELS, 3, 3, 3)
    net = conv("y = Conv (r, v, d)", Plants(0, ()), {}, w=weight, b=bias - 60)
    after = squeezed(net)
    assert after.graph.initializers["w"].shape[0] == 1  # type: ignore[index]
    require_same(net.model(), after, net.samples(3, seed=77))
