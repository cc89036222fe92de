"""Functions of one number that stand behind a value in a graph, such as x Sigmoid(x): what its readers make of it.

Where a function is flat, a range need not reach: a swish makes next to nothing of all that lies far below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq.core.arrays import Float


@dataclass(frozen=True)
class Step:
    """Operator of a function.

    Attributes:
        op_type: ONNX operator, one of `ELEMENTWISE`.
        inputs: Places of earlier results, 0 for the argument; a float is a number of the graph.
        settings: Attributes, in the order of the operator's function here.
    """

    op_type: str
    inputs: tuple[int | float, ...]
    settings: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Function of one number, with one result or several.

    Attributes:
        steps: Operators in dataflow order; the results of the first one have place 1.
        ends: Places of the results that others read.
    """

    steps: tuple[Step, ...]
    ends: tuple[int, ...]

    def of(self, argument: Float) -> Float:
        """Compute the results. Shape [ends, *argument.shape], real units."""
        values = [argument]
        with np.errstate(all="ignore"):
            for step in self.steps:
                inputs = [values[each] if isinstance(each, int) else each for each in step.inputs]
                values.append(ELEMENTWISE[step.op_type](*inputs, *step.settings))
        return np.stack([np.broadcast_to(values[end], argument.shape) for end in self.ends])

    @property
    def is_flat(self) -> bool:
        """Whether there is an operator in it that is flat somewhere."""
        return any(step.op_type in FLAT for step in self.steps)


def _sigmoid(x: Float) -> Float:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _erf(x: Float) -> Float:
    """Approximate erf to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    t = 1.0 / (1.0 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(np.sign(x) * (1.0 - series * np.exp(-np.square(x))))


FLAT: Mapping[str, Callable[..., Any]] = {
    "Elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0))),
    "Erf": _erf,
    "Gelu": lambda x: 0.5 * x * (1.0 + _erf(x / np.sqrt(2.0))),
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0.0, 1.0),
    "HardSwish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "Relu": lambda x: np.maximum(x, 0.0),
    "Sigmoid": _sigmoid,
    "Softplus": lambda x: np.logaddexp(0.0, x),
    "Tanh": np.tanh,
}
"""Operators that are flat below or above some number."""

ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    **FLAT,
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sub": np.subtract,
}
"""Operators that functions are made of."""
