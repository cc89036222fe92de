"""Stated times of kernels: what `ptq/target.py` says a kernel takes, measured on this machine, one thread.

python -m tests.bench_costs [KIND ...] prints rates in nanoseconds, with the median and the largest relative error.
Chains of equal units are timed in float and on codes, a long and a short one in turns; the difference is the unit's.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Console

import ptq
from ptq.allocation.stated_times import work_of
from ptq.analysis.bench import take_turns
from ptq.core.kernel_costs import KernelCosts, Rates, Work
from ptq.models.sessions import run, session_of
from ptq.passes import prepare
from ptq.passes.infer_shapes import shapes_on
from ptq.passes.linear import constant
from ptq.recipe import Weights
from ptq.target import CPU_X86
from ptq.weights import Rtn
from tests.builders import feeds, model_from_text, random

SHORT, LONG, SECONDS = 2, 6, 0.3
RECIPE = ptq.Recipe(target="cpu-x86", weights=Weights(Rtn()), equalize=False, optimize="integers", accept_poor=True)
LEAST_NS = 700.0
"""Time below which errors are not taken relative to it."""

DENSE = [
    *((k, c, c, side) for k in (1, 3) for c in (16, 32, 64, 128) for side in (1, 4, 8, 16)),
    (3, 3, 16, 32), (3, 3, 32, 64), (3, 10, 16, 32), (3, 12, 32, 16), (5, 3, 16, 32), (1, 16, 10, 32), (1, 32, 4, 32),
    (1, 24, 72, 16), (3, 40, 40, 16), (3, 8, 8, 16), (3, 256, 256, 8), (1, 256, 256, 8), (3, 100, 100, 8),
]  # fmt: skip
DEPTHWISE = [(k, c, side) for k in (1, 3, 5) for c in (10, 16, 32, 40, 64, 128) for side in (4, 16, 32)]
IMAGES = ((16, 16), (64, 8), (64, 16), (64, 32), (256, 4))
OPERATORS = {
    "Add": "x{y} = Add (c, x{i})",
    "Concat": "k = Concat <axis = 1> (c, x{i})  x{y} = Slice (k, zero, num, one)",
    "HardSigmoid": "h = HardSigmoid (c)  x{y} = Mul (c, h)",
    "LeakyRelu": "x{y} = LeakyRelu <alpha = 0.1> (c)",
    "MaxPool": "x{y} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)",
    "Mul": "x{y} = Mul (c, x0)",
    "Sigmoid": "s = Sigmoid (c)  x{y} = Mul (c, s)",
}
WITHIN = {"HardSigmoid": "Mul", "Sigmoid": "Mul"}
"""Operators that are timed together with another one, which is known by then."""


@dataclass(frozen=True)
class Timed:
    """Work of a unit, and its nanoseconds in float and on codes."""

    works: tuple[Work, ...]
    nanoseconds: tuple[float, float]


def dense(size: tuple[int, int, int, int], count: int) -> tuple[ir.Model, int, int]:
    """Chain of a convolution and one back to as many channels as before."""
    k, inner, outer, side = size
    body, arrays = "", {}
    for i in range(count):
        arrays |= {f"w{i}": random((outer, inner, k, k), i, 0.1), f"v{i}": random((inner, outer, 1, 1), i, 0.1)}
        body += f"a{i} = Conv <pads = [{k // 2}, {k // 2}, {k // 2}, {k // 2}]> (x{i}, w{i})  r{i} = Relu (a{i}) "
        body += f"b{i} = Conv (r{i}, v{i})  x{i + 1} = Relu (b{i}) "
    return _model(body, inner, count, arrays), inner, side


def depthwise(size: tuple[int, int, int], count: int) -> tuple[ir.Model, int, int]:
    """Chain of depthwise convolutions."""
    k, channels, side = size
    pads, body = f"pads = [{k // 2}, {k // 2}, {k // 2}, {k // 2}]", ""
    for i in range(count):
        body += f"a{i} = Conv <group = {channels}, {pads}> (x{i}, w{i})  x{i + 1} = Relu (a{i}) "
    weights = {f"w{i}": random((channels, 1, k, k), i) for i in range(count)}
    return _model(body, channels, count, weights), channels, side


def operator(form: str, size: tuple[int, int], count: int) -> tuple[ir.Model, int, int]:
    """Chain of a convolution and something behind it."""
    channels, side = size
    body, arrays = "", {"zero": np.array([0]), "one": np.array([1]), "num": np.array([channels])}
    for i in range(count):
        named = re.sub(r"\b[chks]\b", rf"\g<0>{i}", form.format(i=i, y=i + 1))
        body += f"c{i} = Conv (x{i}, w{i})  {named} "
        arrays[f"w{i}"] = random((channels, channels, 1, 1), i, channels**-0.5)
    return _model(body, channels, count, arrays), channels, side


def _model(body: str, channels: int, count: int, arrays: Mapping[str, NDArray[np.generic]]) -> ir.Model:
    text = f"net (float[N, {channels}, H, W] x0) => (float[N, {channels}, H, W] x{count}) {{ {body} }}"
    return model_from_text(text, dict(arrays))


def timed(build: functools.partial[tuple[ir.Model, int, int]]) -> Timed:
    """Time a unit as a long chain less a short one."""
    models, forms = [build(SHORT), build(LONG)], list[bytes]()
    _, channels, side = models[0]
    data = [{"x0": feed["x"]} for feed in feeds(4, channels, side, side)]
    for model, _, _ in models:
        forms += [ir.to_proto(model).SerializeToString(), ptq.quantize(model, data, RECIPE).delivery.data or b""]
    with ExitStack() as stack:
        sessions = [stack.enter_context(session_of(form)) for form in forms]
        _, processor = take_turns([functools.partial(run, session, dict(data[0])) for session in sessions], SECONDS)
    spent = np.percentile(processor, 30, axis=1) * 1e9 / (LONG - SHORT)
    short, long = (works_of(model, data[0]) for model, _, _ in models)
    unit = tuple(short[: (len(long) - len(short)) // (LONG - SHORT)])
    return Timed(unit, (spent[2] - spent[0], spent[3] - spent[1]))


def works_of(model: ir.Model, feed: Mapping[str, NDArray[np.float32]]) -> list[Work]:
    prepared, _ = prepare(model, feed)
    shapes = shapes_on(prepared, feed)
    nodes = [node for node in prepared.graph if any(constant(v) is None for v in node.inputs)]
    return [work_of(node, shapes) for node in nodes if node.op_type != "Relu"]


def fitted(rows: list[Timed], side: int, kind: str, known: Mapping[str, Rates]) -> tuple[Rates, NDArray[np.float64]]:
    """Fit rates that are nowhere negative to relative errors: the worst is left out, and all are fitted again."""
    counts = np.array([np.sum([_counts(w) for w in row.works if w.kind == kind], axis=0) for row in rows], float)
    beside = [sum(known[w.kind].microseconds(w) * 1e3 for w in row.works if w.kind in known) for row in rows]
    spent = np.array([row.nanoseconds[side] for row in rows])
    weight = 1 / np.maximum(spent, LEAST_NS)
    scaled, wanted = counts * weight[:, None], (spent - beside) * weight
    size = np.maximum(np.abs(scaled).max(0), 1e-30)
    used = np.flatnonzero(np.abs(scaled).max(0))
    while True:
        found = np.linalg.lstsq(scaled[:, used] / size[used], wanted, rcond=None)[0]
        if (found >= 0).all():
            break
        used = np.delete(used, int(np.argmin(found)))
    rates = np.zeros(counts.shape[1])
    rates[used] = found / size[used]
    return Rates(*(float(f"{rate:.2g}") for rate in rates)), (counts @ rates + beside - spent) * weight


def _counts(work: Work) -> list[int]:
    return [1, *astuple(work)[1:]]


def measured(kinds: Sequence[str]) -> Iterator[tuple[str, list[Timed]]]:
    """Time chains: dense layers first, which are in all others."""
    if "dense" in kinds:
        yield "dense", [timed(functools.partial(dense, size)) for size in DENSE]
    if "depthwise" in kinds:
        yield "depthwise", [timed(functools.partial(depthwise, size)) for size in DEPTHWISE]
    for name in sorted(set(OPERATORS) & set(kinds), key=lambda name: (name in WITHIN, name)):
        yield name, [timed(functools.partial(operator, OPERATORS[name], size)) for size in IMAGES]


def main() -> None:
    """Print the rates."""
    say, names = Console(width=160, soft_wrap=True, highlight=False).print, [field.name for field in fields(Rates)]
    stated = CPU_X86.costs or KernelCosts({}, {}, Rates())
    known = (dict(stated.floats), dict(stated.integers))
    for kind, rows in measured(sys.argv[1:] or ["dense", "depthwise", *OPERATORS]):
        for side, where in enumerate(("float", "codes")):
            rates, errors = fitted(rows, side, kind, {key: each for key, each in known[side].items() if key != kind})
            known[side][kind] = rates
            text = ", ".join(f"{name}={rate:g}" for name, rate in zip(names, astuple(rates), strict=True) if rate)
            say(f"{kind}, {where}: Rates({text})  error {np.median(abs(errors)):.0%}, at most {abs(errors).max():.0%}")


if __name__ == "__main__":
    main()
