"""Channels that carry nothing, planted in front of every operator of convolutional networks: all leave, others stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.builders import Arrays, random
from tests.squeezing import ALL, CHANNELS, Net, Plants, check

SEEDS = range(10)
More = tuple[Arrays, Mapping[str, Mapping[int, Sequence[int]]]]
STEADY = ("constant", "duplicate", "scaled")


def nothing(_plants: Plants) -> More:
    return {}, {}


def net(
    body: str,
    plants: Plants,
    more: Callable[[Plants], More] = nothing,
    *,
    stay: Collection[str] = (),
    free: Collection[str] = (),
    inputs: int = CHANNELS,
    **layer: Any,
) -> Net:
    """A convolution with planted channels, something, a convolution that sums over it."""
    text = f"""net (float[N, 3, 8, 8] x) => (float[N, 4] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)  {body}  c = Conv (z, v, d)
        p9 = GlobalAveragePool (c)  f9 = Flatten (p9)  y = Gemm <transB = 1> (f9, o) }}"""
    weight, bias = plants.layer(CHANNELS, 3, 3, 3, **layer)
    gone, seed = plants.without(*stay), plants.seed
    weights = {
        "w": weight, "b": bias, "v": random((6, inputs, 1, 1), seed + 1), "d": random((6,), seed + 2),
        "o": random((4, 6), seed + 3),
    }  # fmt: skip
    others, cut = more(plants)
    return Net(text, weights | others, {"w": {0: gone}, "b": {0: gone}, "v": {1: gone}} | cut, {"v", "d", *free})


def constants(**arrays: Any) -> Callable[[Plants], More]:
    return lambda _plants: ({name: np.asarray(array) for name, array in arrays.items()}, {})


def slopes(plants: Plants) -> More:
    return {"s": plants.repeated(np.abs(random((CHANNELS, 1, 1), plants.seed + 9)))}, {"s": {0: plants.gone}}


def norm(plants: Plants) -> More:
    arrays = {name: random((CHANNELS,), plants.seed + i) for i, name in enumerate(("gain", "shift", "mean", "var"), 9)}
    arrays["gain"], arrays["var"] = np.abs(arrays["gain"]) + 0.5, np.abs(arrays["var"]) + 0.5
    for name, array in arrays.items():
        plants.repeated(array, scaled=name in ("shift", "mean"))
    return arrays, {name: {0: plants.gone} for name in arrays}


def gate(plants: Plants) -> More:
    seed, gone = plants.seed, plants.without("constant")
    arrays = {
        "v1": random((5, CHANNELS, 1, 1), seed + 20), "c1": np.abs(random((5,), seed + 21)) + 4,
        "v2": plants.repeated(random((CHANNELS, 5, 1, 1), seed + 22, 0.05)),
        "c2": plants.repeated(random((CHANNELS,), seed + 23)),
    }  # fmt: skip
    return arrays, {"v1": {1: gone}, "v2": {0: gone}, "c2": {0: gone}}


GATE = """r = Relu (a)  g = GlobalAveragePool (r)  s1 = Conv (g, v1, c1)  s2 = Relu (s1)  s3 = Conv (s2, v2, c2)
    s4 = HardSigmoid (s3)  z = Mul (r, s4)"""


def depthwise(plants: Plants, each: int = 1, stay: Collection[str] = ()) -> More:
    kernel = np.repeat(plants.repeated(random((CHANNELS, 1, 3, 3), plants.seed + 30)), each, 0)
    offset = np.repeat(plants.repeated(random((CHANNELS,), plants.seed + 31)), each)
    behind = [each * place + i for place in plants.without(*stay) for i in range(each)]
    return {"k": kernel, "kb": offset}, {"k": {0: behind}, "kb": {0: behind}, "v": {1: behind}}


def other_writer(plants: Plants) -> More:
    """The same kinds at the same places in another layer."""
    weight, bias = Plants(plants.seed + 500, ()).layer(CHANNELS, 3, 3, 3)
    for kind, place in plants.at.items():
        weight[place] = 0 if kind in ("dead", "constant") else weight[place]
    arrays = {"w2": plants.repeated(weight, scaled=True), "b2": plants.repeated(bias, scaled=True)}
    return arrays, {name: {0: plants.gone} for name in arrays}


def moved(plants: Plants, picked: np.ndarray) -> More:
    """What leaves where channels change places: of those that repeat one another, the first one behind stays."""
    alike = [plants.at[kind] for kind in ("leader", "duplicate", "scaled")]
    first = min(alike, key=picked.tolist().index)
    gone = sorted({*plants.gone, *alike} - {first})
    return {}, {"w": {0: gone}, "b": {0: gone}, "v": {1: np.flatnonzero(np.isin(picked, gone)).tolist()}}


def shuffled(plants: Plants) -> More:
    picked = np.random.default_rng(plants.seed).permutation(CHANNELS)
    return {"picked": picked}, moved(plants, picked)[1]


def halves(plants: Plants) -> More:
    return {"sizes": np.array([5, 7])}, moved(plants, np.roll(np.arange(CHANNELS), 7))[1]


Q = "q = Relu (a)"
BODIES: dict[str, tuple[Any, ...]] = {
    "Relu": ("z = Relu (a)",),
    "Clip": ("z = Clip (a, zero, top)", ALL, constants(zero=np.float32(0), top=np.float32(60))),
    "LeakyRelu": ("z = LeakyRelu (a)", STEADY),
    "PRelu": ("z = PRelu (a, s)", STEADY, slopes),
    "HardSwish": ("z = HardSwish (a)", ("dead", "constant", "duplicate")),
    "HardSigmoid": ("z = HardSigmoid (a)", ("dead", "constant", "duplicate")),
    "Sigmoid": ("z = Sigmoid (a)", ("dead", "constant", "duplicate")),
    "Tanh": ("z = Tanh (a)", ("dead", "constant", "duplicate")),
    "BatchNormalization": ("n = BatchNormalization (a, gain, shift, mean, var)  z = Relu (n)", ALL, norm),
    "Relu, BatchNormalization": (f"{Q}  z = BatchNormalization (q, gain, shift, mean, var)", ("dead",), norm),
    "gate": (GATE, ALL, gate, {"stay": ("constant",), "free": ("v1", "c1")}),
    "MaxPool": (f"{Q}  z = MaxPool <kernel_shape = [2, 2]> (q)",),
    "AveragePool": (f"{Q}  z = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (q)",),
    "GlobalAveragePool": (f"{Q}  z = GlobalAveragePool (q)",),
    "GlobalMaxPool": (f"{Q}  z = GlobalMaxPool (q)",),
    "ReduceMean": (f"{Q}  z = ReduceMean <axes = [2, 3]> (q)",),
    "Resize scales": (f'{Q}  z = Resize <mode = "nearest"> (q, , sc)', ALL,
                      constants(sc=np.array([1, 1, 2, 2], np.float32))),
    "Resize sizes": (f'{Q}  z = Resize <mode = "linear"> (q, , , sizes)', ALL,
                     constants(sizes=np.array([1, CHANNELS, 12, 12]))),
    "Transpose": ("t = Transpose <perm = [0, 2, 3, 1]> (a)  q = Relu (t)  z = Transpose <perm = [0, 3, 1, 2]> (q)",),
    "Pad": (f"{Q}  z = Pad (q, pads)", ALL, constants(pads=np.array([0, 0, 1, 1, 0, 0, 1, 1])), {"stay": ["constant"]}),
    "Slice": (f"{Q}  z = Slice (q, start, end, axes)", ALL,
              constants(start=np.array([1, 1]), end=np.array([7, 9]), axes=np.array([2, 3]))),
    "Gather": (f"{Q}  z = Gather <axis = 1> (q, picked)", ALL, shuffled),
    "Split, Concat": ("s1, s2 = Split <axis = 1> (a, sizes)  q1 = Relu (s1)  q2 = Relu (s2)  "
                      "z = Concat <axis = 1> (q2, q1)", ALL, halves),
    "depthwise": (f"{Q}  k1 = Conv <group = 12> (q, k, kb)  z = LeakyRelu (k1)", ("dead", "constant", "duplicate"),
                  depthwise),
    "depthwise, padded": (f"{Q}  z = Conv <group = 12, pads = [1, 1, 1, 1]> (q, k, kb)",
                          ("dead", "constant", "duplicate"), lambda p: depthwise(p, 1, ["constant"]),
                          {"stay": ["constant"]}),
    "depthwise, multiplied": (f"{Q}  z = Conv <group = 12> (q, k, kb)", ("dead", "constant", "duplicate"),
                              lambda p: depthwise(p, 2), {"inputs": 24}),
    "depthwise, transposed": (f"{Q}  z = ConvTranspose <group = 12, strides = [3, 3]> (q, k, kb)",
                              ("dead", "duplicate"), depthwise),
    "Add": ("a2 = Conv <pads = [1, 1, 1, 1]> (x, w2, b2)  s = Add (a, a2)  z = Relu (s)", ALL, other_writer),
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", BODIES)
def test_planted_channels_leave(name: str, seed: int) -> None:
    body, kinds, more, words = (*BODIES[name], *(None, ALL, nothing, {})[len(BODIES[name]) :])
    check(net(body, Plants(seed, kinds), more, **words))
