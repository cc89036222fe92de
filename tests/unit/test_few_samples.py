"""Small calibration sets: what a dozen rows say of sixty-four inputs is mostly chance."""

from __future__ import annotations

import pytest

from ptq import Recipe, quantize
from ptq.recipe import Weights
from ptq.weights import Gpfq, Gptq, Qronos, Rtn, WeightMethod
from tests.builders import feeds, model_from_text, random
from tests.unit.test_balancing import sqnr_db


@pytest.mark.parametrize("operator", ["MatMul (x, w0)", "Gemm (x, w0)"])
@pytest.mark.parametrize("method", [Gptq(), Gpfq(), Qronos()], ids=["gptq", "gpfq", "qronos"])
def test_no_solver_is_much_worse_than_rounding(method: WeightMethod, operator: str) -> None:
    text = f"m (float[N, 64] x) => (float[N, 32] y) {{ a = {operator}  y = Relu (a) }}"
    model = model_from_text(text, {"w0": random((64, 32), 1)})
    found = []
    for each in (Rtn("mse"), method):
        result = quantize(
            model, feeds(12, 64), Recipe(weight_only=True, accept_poor=True, weights=Weights(each, bits=4))
        )
        found.append(sqnr_db(result, model, feeds(200, 64, seed=9)))
    assert found[1] > found[0] - 1
