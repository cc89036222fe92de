"""Functions of one code as a table: the kernel, its body, and what is written as one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from ptq import Recipe, quantize
from ptq.core.arrays import Feed
from ptq.passes.native_bodies import LOOKUP
from ptq.runtime import open_session
from tests.builders import Arrays, feeds, model_from_text, native_lookup, random
from tests.runtime.test_native import LIBRARY, VARIANTS, needs_library

TABLE = np.random.default_rng(3).integers(0, 256, 256).astype(np.uint8)


@needs_library
@pytest.mark.parametrize("kernels", ["ref", *VARIANTS])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_equals_its_body(kernels: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTQ_KERNELS", kernels)
    kernel = open_session(native_lookup(TABLE), custom_ops=(str(LIBRARY),), num_threads=threads)
    standard = open_session(native_lookup(TABLE))
    for count in [0, 1, 15, 16, 31, 33, 63, 64, 65, 300, (1 << 20) + 77]:
        x = np.random.default_rng(count).integers(0, 256, (1, count)).astype(np.uint8)
        (found,) = kernel.run(None, {"x": x})
        np.testing.assert_array_equal(found, TABLE[x])
        np.testing.assert_array_equal(found, standard.run(None, {"x": x})[0])


@needs_library
def test_a_table_of_another_length_is_refused() -> None:
    with pytest.raises(Exception, match="lookup7: table has 255 elements; expected 256"):
        open_session(native_lookup(TABLE[:255]), custom_ops=(str(LIBRARY),))


WEIGHTS: Arrays = {
    "w": random((8, 3, 3, 3), 0, 0.8), "v": random((8, 1, 3, 3), 1), "o": random((6, 8, 1, 1), 4),
    "shift": np.float32(-0.7), "root": np.float32(1.4142135), "one": np.float32(1), "half": np.float32(0.5),
    "g": np.abs(random((8, 1, 1), 5)),
}  # fmt: skip
CHAINS = {
    "hard swish": "s = HardSwish (a)",
    "swish": "g0 = Sigmoid (a)  s = Mul (a, g0)",
    "gelu": "d = Div (a, root)  e = Erf (d)  f = Add (e, one)  h = Mul (a, f)  s = Mul (h, half)",
    "mish": "p = Softplus (a)  t = Tanh (p)  s = Mul (a, t)",
    "shifted": "h = HardSwish (a)  s = Add (h, shift)",
}


def quantized(chain: str, target: str) -> tuple[ir.Model, Feed, bytes]:
    """A network with a chain between two convolutions, its input and its bytes."""
    text = f"""net (float[N, 3, 10, 10] x) => (float[N, 6, 8, 8] y) {{
        a = Conv (x, w)  {chain}  d0 = Conv <group = 8, pads = [1, 1, 1, 1]> (s, v)  y = Conv (d0, o) }}"""
    samples = feeds(48, 3, 10, 10)
    result = quantize(model_from_text(text, WEIGHTS), samples, Recipe(target=target))
    return result.delivery.model, samples[0], result.delivery.data or b""


@pytest.mark.parametrize("name", CHAINS)
def test_a_function_of_one_code_is_one_table(name: str) -> None:
    model, feed, data = quantized(CHAINS[name], "native")
    operators = Counter(node.op_type for node in model.graph)
    assert operators[LOOKUP] == 1
    assert not {"Mul", "Clip", "Erf", "Sigmoid", "Add"} & set(operators)
    standard, _, plain = quantized(CHAINS[name], "cpu-x86")
    assert LOOKUP not in {node.op_type for node in standard.graph}
    (found,), (wanted,) = (open_session(form).run(None, feed) for form in (data, plain))
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).mean()  # products round twice, tables once


@pytest.mark.parametrize(
    ("chain", "tables"),
    [
        ("r = Relu (a)  s = Mul (r, g)", 0),  # a number for each channel
        ("b = Conv (x, w)  m = HardSwish (a)  n = HardSwish (b)  s = Add (m, n)", 2),
        ("m = HardSwish (a)  p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (m)  s = Add (m, p)", 1),
    ],
)
def test_other_functions_stay(chain: str, tables: int) -> None:
    model, _, _ = quantized(chain, "native")
    assert [node.op_type for node in model.graph].count(LOOKUP) == tables
