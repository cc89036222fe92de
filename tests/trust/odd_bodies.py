"""Layers inside If, Loop, Scan and local functions, nested and shadowed."""

from __future__ import annotations

import numpy as np

from tests.builders import random
from tests.trust.cases import Arrays, Stage, each, odd

ROW = "float[N, 8]"
IMAGE = "float[N, 4, 6, 6]"
W: Arrays = {"w": random((8, 8), 1), "v": random((8, 8), 2), "zero": np.float32(0)}
K: Arrays = {"k": random((4, 3, 3, 3), 1), "l": random((4, 3, 3, 3), 2), "zero": np.float32(0)}
CHOICE = "t = ReduceMean <keepdims = 0> (x)  c = Greater (t, zero)"
TIMES: Arrays = {"times": np.array(3), "yes": np.array(True)}


def head(text: str) -> str:
    return f"net ({ROW} x) => ({ROW} y) {{ {text} }}"


BODIES: dict[str, tuple[str, Arrays]] = {
    "convolutions in an If": (
        f"""net (float[N, 3, 8, 8] x) => ({IMAGE} y) {{ {CHOICE}
            y = If (c) <then_branch = one () => ({IMAGE} p) {{ p = Conv (x, k) }},
                        else_branch = two () => ({IMAGE} q) {{ q = Conv (x, l) }}> }}""", K),
    "convolutions around an If": (
        f"""net (float[N, 3, 8, 8] x) => (float y) {{ {CHOICE}  a = Conv (x, k)
            i = If (c) <then_branch = one () => ({IMAGE} p) {{ p = Relu (a) }},
                        else_branch = two () => ({IMAGE} q) {{ q = Neg (a) }}>
            y = Conv (i, o) }}""", {**K, "o": random((2, 4, 3, 3))}),
    "products in an If with weights of their own": (
        head(f"""{CHOICE}
            y = If (c) <
                then_branch = one () => ({ROW} p) <float[8, 8] inner = {{{", ".join(["0.25"] * 64)}}}>
                    {{ p = MatMul (x, inner) }},
                else_branch = two () => ({ROW} q) {{ q = MatMul (x, w) }}>"""), W),
    "an If in an If": (
        head(f"""{CHOICE}
            y = If (c) <
                then_branch = one () => ({ROW} p) {{
                    p = If (c) <then_branch = three () => ({ROW} r) {{ r = MatMul (x, w) }},
                                else_branch = four () => ({ROW} s) {{ s = MatMul (x, v) }}> }},
                else_branch = two () => ({ROW} q) {{ q = MatMul (x, w) }}>"""), W),
    "names that are used in both branches": (
        head(f"""{CHOICE}
            y = If (c) <then_branch = one () => ({ROW} p) {{ h = MatMul (x, w)  p = Relu (h) }},
                        else_branch = two () => ({ROW} p) {{ h = MatMul (x, v)  p = Relu (h) }}>"""), W),
    "a value that only a branch reads": (
        head(f"""{CHOICE}  a = MatMul (x, w)  b = Relu (a)  d = MatMul (b, v)
            y = If (c) <then_branch = one () => ({ROW} p) {{ p = Identity (b) }},
                        else_branch = two () => ({ROW} q) {{ q = Identity (d) }}>"""), W),
    "a weight that a branch reads too": (
        f"""net (float[8, 8] x) => (float[8, 8] y) {{ {CHOICE}  a = MatMul (x, w)
            i = If (c) <then_branch = one () => (float[8, 8] p) {{ p = Add (a, w) }},
                        else_branch = two () => (float[8, 8] q) {{ q = Sub (a, w) }}>
            y = MatMul (i, v) }}""", W),
    "products in a Loop": (
        head(f"""y = Loop (times, yes, x) <
            body = loop (int64 i, bool go, {ROW} h) => (bool still, {ROW} n)
                {{ still = Identity (go)  m = MatMul (h, w)  n = Tanh (m) }}>"""), {**W, **TIMES}),
    "a Loop that collects": (
        f"""net ({ROW} x) => ({ROW} y, float z) {{ y, z = Loop (times, yes, x) <
            body = loop (int64 i, bool go, {ROW} h) => (bool still, {ROW} n, {ROW} s)
                {{ still = Identity (go)  m = MatMul (h, w)  n = Tanh (m)  s = MatMul (n, v) }}> }}""",
        {**W, **TIMES}),
    "a Loop between two products": (
        head(f"""a = MatMul (x, w)
            l = Loop (times, yes, a) <
                body = loop (int64 i, bool go, {ROW} h) => (bool still, {ROW} n)
                    {{ still = Identity (go)  n = Tanh (h) }}>
            y = MatMul (l, v)"""), {**W, **TIMES}),
    "a Loop that never runs": (
        head(f"""a = MatMul (x, w)
            y = Loop (never, yes, a) <
                body = loop (int64 i, bool go, {ROW} h) => (bool still, {ROW} n)
                    {{ still = Identity (go)  n = MatMul (h, v) }}>"""), {**W, **TIMES, "never": np.array(0)}),
    "a branch that is never taken": (
        head(f"""a = MatMul (x, w)
            y = If (yes) <then_branch = one () => ({ROW} p) {{ p = Relu (a) }},
                          else_branch = two () => ({ROW} q) {{ q = MatMul (a, v) }}>"""), {**W, **TIMES}),
    "products in a Scan": (
        """net (float[5, 8] x) => (float[5, 8] y) {
            s, y = Scan <num_scan_inputs = 1,
                body = scan (float[8] h, float[8] e) => (float[8] n, float[8] o)
                    { r = Unsqueeze (e, first)  m = MatMul (r, w)  q = Squeeze (m, first)  a = Add (q, h)
                      n = Tanh (a)  o = Identity (n) }> (start, x) }""",
        {**W, "first": np.array([0]), "start": np.zeros(8, np.float32)}),
    "an If in a Loop": (
        head(f"""y = Loop (times, yes, x) <
            body = loop (int64 i, bool go, {ROW} h) => (bool still, {ROW} n) {{
                still = Identity (go)  e = ReduceMean <keepdims = 0> (h)  f = Greater (e, zero)
                n = If (f) <then_branch = one () => ({ROW} p) {{ p0 = MatMul (h, w)  p = Tanh (p0) }},
                            else_branch = two () => ({ROW} q) {{ q0 = MatMul (h, v)  q = Tanh (q0) }}> }}>"""),
        {**W, **TIMES}),
    "ten Ifs in each other": (
        head(CHOICE + "  y = " + "".join(
            f"If (c) <then_branch = a{i} () => ({ROW} p{i}) {{ p{i} = MatMul (x, w) }}, "
            f"else_branch = b{i} () => ({ROW} q{i}) {{ q{i} = " for i in range(10)) + "MatMul (x, v)" + " }>" * 10), W),
}  # fmt: skip


@each(lambda name: odd(f"body: {name}"), BODIES)
def body(stage: Stage, given: tuple[str, Arrays]) -> None:
    stage.put_text(*given)


LOCAL = '<domain: "local", opset_import: ["" : 17, "local" : 1]>'
FUNCTIONS: dict[str, tuple[str, Arrays]] = {
    "with a product": (
        head("y = local.layer (x, w)") + f"{LOCAL} layer (a, b) => (c) {{ m = MatMul (a, b)  c = Relu (m) }}", W),
    "called twice": (
        head("h = local.layer (x, w)  y = local.layer (h, v)")
        + f"{LOCAL} layer (a, b) => (c) {{ m = MatMul (a, b)  c = Relu (m) }}", W),
    "that calls another": (
        head("y = local.two (x, w, v)")
        + f"{LOCAL} layer (a, b) => (c) {{ m = MatMul (a, b)  c = Relu (m) }}"
        + f"{LOCAL} two (a, b, d) => (c) {{ h = local.layer (a, b)  c = local.layer (h, d) }}", W),
    "with an attribute": (
        head("h = local.part <alpha = 0.3> (x)  y = MatMul (h, w)")
        + f"{LOCAL} part <alpha> (a) => (c) {{ c = LeakyRelu <alpha: float = @alpha> (a) }}", W),
    "with a default attribute": (
        head("h = local.part (x)  y = MatMul (h, w)")
        + f"{LOCAL} part <alpha: float = 0.3> (a) => (c) {{ c = LeakyRelu <alpha: float = @alpha> (a) }}", W),
    "with names of the graph": (
        head("a = local.part (x)  h = MatMul (a, w)  y = local.part (h)")
        + f"{LOCAL} part (x) => (y) {{ a = Neg (x)  h = Relu (a)  y = Sub (x, h) }}", W),
    "that nobody calls": (
        head("y = MatMul (x, w)") + f"{LOCAL} part (x) => (y) {{ y = Neg (x) }}", W),
    "in a branch": (
        head(f"""{CHOICE}
            y = If (c) <then_branch = one () => ({ROW} p) {{ p = local.layer (x, w) }},
                        else_branch = two () => ({ROW} q) {{ q = local.layer (x, v) }}>""")
        + f"{LOCAL} layer (a, b) => (c) {{ m = MatMul (a, b)  c = Relu (m) }}", W),
    "with a weight inside": (
        head("y = local.layer (x)")
        + f"{LOCAL} layer (a) => (c) {{ b = Constant <value = float[8, 8] {{{', '.join(['0.25'] * 64)}}}> ()"
        + "  c = MatMul (a, b) }", {}),
}  # fmt: skip


@each(lambda name: odd(f"function: {name}"), FUNCTIONS)
def function(stage: Stage, given: tuple[str, Arrays]) -> None:
    stage.put_text(*given)
