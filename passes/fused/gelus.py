"""Gelu in its forms: by the error function, by the hyperbolic tangent, by the logistic function."""

from __future__ import annotations

import numpy as np

from ptq.passes.fused.writer import Outputs, Writer

SQRT_HALF, SQRT_TWO_OVER_PI, CUBE = np.sqrt(0.5), np.sqrt(2 / np.pi), 0.044715


def erf_gelu(w: Writer) -> Outputs:
    """Write x / 2 (1 + erf(x / sqrt 2)), of x with a bias if there is one."""
    x = w.sum(w.input(0), w.input(1))
    reach = w.op("Erf", w.op("Mul", x, w.constant(SQRT_HALF, "slope")))
    halved = w.op("Mul", x, w.constant(0.5, "half"))
    return [w.op("Mul", halved, w.op("Add", reach, w.constant(1.0, "one")))]


def tanh_gelu(w: Writer) -> Outputs:
    """Write x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), of x with a bias if there is one."""
    x = w.sum(w.input(0), w.input(1))
    square = w.op("Mul", x, x)
    slope = w.constant(SQRT_TWO_OVER_PI, "slope")
    factor = w.op("Add", w.op("Mul", square, w.constant(SQRT_TWO_OVER_PI * CUBE, "cube")), slope)
    reach = w.op("Tanh", w.op("Mul", x, factor))
    halved = w.op("Mul", x, w.constant(0.5, "half"))
    return [w.op("Mul", halved, w.op("Add", reach, w.constant(1.0, "one")))]


def quick_gelu(w: Writer) -> Outputs:
    """Write x sigmoid(a x)."""
    x = w.sum(w.input(0))
    alpha = w.constant(w.node.attributes.get_float("alpha", 1.702), "slope")
    return [w.op("Mul", x, w.op("Sigmoid", w.op("Mul", x, alpha)))]
