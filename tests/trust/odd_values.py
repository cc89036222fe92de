"""Numbers at the edge: nothing but zeros, outliers, denormals, masks of minus infinity."""

from __future__ import annotations

import numpy as np

from tests.builders import random
from tests.trust.cases import SAMPLES, WEIGHTS, Arrays, Stage, each, odd, proto_of, small_net, tensor_named

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
BIG = float(np.finfo(np.float32).max)


def _replace(stage: Stage, **arrays: Array) -> None:
    model = small_net()
    for name, array in arrays.items():
        tensor_named(model, name).raw_data = array.astype(np.float32).tobytes()
    stage.put_odd(model)


def _channel(place: int, size: float) -> Array:
    """Kernels with one channel of another size."""
    sizes: Array = _some(np.ones((8, 1, 1, 1), np.float32), size, place)
    scaled: Array = W * sizes
    return scaled


def _some(array: Array, value: float, *places: int) -> Array:
    changed = array.copy()
    for place in places:
        changed[place] = value
    return changed


W, B = WEIGHTS["conv_weight"], WEIGHTS["conv_bias"]


@each(
    lambda name: odd(f"weights: {name}", floor_db=5 if "outlier" in name else 15),
    {
        "zeros": {"conv_weight": W * 0},
        "zeros and a bias of zeros": {"conv_weight": W * 0, "conv_bias": B * 0},
        "zeros in the last layer": {"gemm_weight": WEIGHTS["gemm_weight"] * 0},
        "two dead channels": {"conv_weight": _some(W, 0.0, 2, 5)},
        "two channels that never fire": {"conv_bias": _some(B, -100.0, 2, 5)},
        "no channel ever fires": {"conv_bias": B * 0 - 1000},
        "tiny": {"conv_weight": W * np.float32(1e-20), "conv_bias": B * np.float32(1e-20)},
        "one tiny channel": {"conv_weight": _channel(2, 1e-12)},
        "denormal": {"conv_weight": W * np.float32(1e-39), "conv_bias": B * np.float32(1e-39)},
        "one denormal channel": {"conv_weight": _channel(1, 1e-40)},
        "the smallest denormal": {"conv_weight": np.full_like(W, 1e-45)},
        "large": {"conv_weight": W * np.float32(1e15), "conv_bias": B * np.float32(1e15)},
        "a huge bias": {"conv_bias": B * np.float32(1e8)},
        "all the same": {"conv_weight": W * 0 + np.float32(0.1)},
        "all the same but one outlier": {"conv_weight": _some(W * 0 + np.float32(0.01), 1.0, 3)},
        "minus zero": {"conv_weight": -W * 0},
        "powers of two": {"conv_weight": np.exp2(np.arange(W.size) % 8 - 8).reshape(W.shape)},
    },
)  # fmt: skip
def weights(stage: Stage, arrays: dict[str, Array]) -> None:
    _replace(stage, **arrays)


X = random((SAMPLES, 3, 8, 8), 7, 1.0)


@each(
    lambda name: odd(f"activations: {name}", floor_db=3 if "outlier" in name else 15),
    {
        "zeros": X * 0,
        "one number everywhere": X * 0 + 3,
        "a negative number everywhere": X * 0 - 3,
        "a tiny number everywhere": X * 0 + np.float32(1e-30),
        "denormal": X * np.float32(1e-40),
        "1e-30": X * np.float32(1e-30),
        "1e15": X * np.float32(1e15),
        "one outlier of 1e8": _some(X, 1e8, 3),
        "far from zero": X + 1e5,
        "never negative": np.abs(X),
        "one sample other than the rest": _some(X * 0, 1.0, 4),
    },
)
def activations(stage: Stage, x: Array) -> None:
    stage.put_odd(small_net(), x=x.astype(np.float32))


ATTENTION = """net (float[N, 6, 8] x) => (float[N, 6, 8] y) {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, t)
    m = Add (s, mask)
    p = Softmax <axis = -1> (m)
    o = MatMul (p, v)
    y = MatMul (o, wo)
}"""


@each(
    lambda name: odd(f"mask: {name}"),
    {"minus infinity": -np.inf, "-FLT_MAX": -BIG, "-1e9": -1e9, "-10000": -1e4},
)
def mask(stage: Stage, value: float) -> None:
    above = np.triu(np.full((6, 6), value, np.float32), 1)
    arrays = {name: random((8, 8), seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"))}
    stage.put_text(ATTENTION, {**arrays, "mask": np.where(np.triu(np.ones((6, 6)), 1) > 0, above, np.float32(0))})


@each(lambda name: odd(f"mask: {name} through Where"), {"minus infinity": -np.inf, "-FLT_MAX": -BIG})
def where(stage: Stage, value: float) -> None:
    arrays = {name: random((8, 8), seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"))}
    text = ATTENTION.replace("m = Add (s, mask)", "m = Where (allowed, s, floor)")
    stage.put_text(text, {**arrays, "allowed": np.tril(np.ones((6, 6), bool)), "floor": np.float32(value)})


@each(lambda name: odd(f"mask: {name} from an input"), {"-FLT_MAX": -BIG, "-1e9": -1e9})
def mask_input(stage: Stage, value: float) -> None:
    arrays = {name: random((8, 8), seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"))}
    text = ATTENTION.replace("x) =>", "x, int64[N, 6] attention_mask) =>").replace(
        "m = Add (s, mask)",
        """f = Cast <to = 1> (attention_mask)
        i = Sub (one, f)
        b = Mul (i, floor)
        u = Unsqueeze (b, axis)
        m = Add (s, u)""",
    )
    model = proto_of(text, {**arrays, "one": np.float32(1), "floor": np.float32(value), "axis": np.array([1])})
    given = np.ones((SAMPLES, 6), np.int64)
    given[:, 4:] = 0
    stage.put_odd(model, attention_mask=given)


INNER: dict[str, tuple[str, Arrays]] = {
        "a range of 1e30": ("h = Mul (a, big)  i = Div (h, big)", {"big": np.float32(1e30)}),
        "a floor below": ("i = Max (a, low)", {"low": np.float32(-9)}),
        "a constant that is added": ("i = Add (a, one)", {"one": np.float32(1e4)}),
        "infinity as a clip": ("i = Clip (a, none, all)", {"none": np.float32(-np.inf), "all": np.float32(np.inf)}),
        "FLT_MAX as a clip": ("i = Clip (a, none, all)", {"none": np.float32(-BIG), "all": np.float32(BIG)}),
}  # fmt: skip


@each(lambda name: odd(f"inner values: {name}"), INNER)
def inner(stage: Stage, given: tuple[str, Arrays]) -> None:
    lines, arrays = given
    text = f"""net (float[N, 3, 8, 8] x) => (float[N, 8, 6, 6] y) {{
        a = Conv (x, conv_weight)
        {lines}
        y = Relu (i)
    }}"""
    stage.put_text(text, {"conv_weight": W, **arrays})
