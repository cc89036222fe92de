"""Float islands: what is faster in float stays there, by stated times of kernels, so that all machines decide alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from ptq.allocation.divide import NodeTimes, Price, converted_values, divide
from ptq.allocation.stated_times import stated_times
from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.sample import repeated
from ptq.core.kernel_costs import KernelCosts
from ptq.passes.infer_shapes import shapes_on
from ptq.passes.placement import Placement
from ptq.transforms.rewritten import Rewritten

FASTER = "faster in float by the stated times of the target's kernels"

WORTH = 0.05
"""Share of the time from which on it is worth leaving integers out."""

LEAST_US = 30.0
"""Time of a model below which calling it is most of the time."""


@dataclass(frozen=True)
class FloatIslands:
    """Leave in float what makes a model slower on codes, conversions counted: depthwise layers, few channels, swishes.

    The cheapest division of the graph between both, by times that the target states for its kernels. Nothing is
    measured, so that the same model and data give the same bytes everywhere.

    Attributes:
        place: Places integers wherever there is a kernel for them.
        costs: Stated times.
        batch: Samples at once.
    """

    place: Callable[[Rewritten], Placement]
    costs: KernelCosts
    batch: int = 1

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Add the nodes of the islands to those that keep float kernels, where the time that they save is worth it.

        Args:
            state: The model so far. Not modified.
            calibration: Its first sample tells sizes.

        Returns:
            The new state; `state` itself where nothing is gained.
        """
        shapes = shapes_on(state.model, repeated(calibration.first, self.batch), calibration.custom_ops)
        estimate = _Estimate.of(state.model, shapes, self.costs)
        whole = self.place(state)
        floats = divide(state.model, whole, estimate.times, estimate.sizes, estimate.price)
        mixed = replace(state, floats={**dict.fromkeys(sorted(floats), FASTER), **state.floats})
        before, after = estimate.total(whole), estimate.total(self.place(mixed)) if floats else math.inf
        if before < LEAST_US or after > before * (1 - WORTH):
            return state
        note = f"{len(floats)} operators stay float, which by stated times of kernels saves {1 - after / before:.0%}"
        return replace(mixed, notes=(*state.notes, f"{note}; --optimize integers leaves none"))


@dataclass(frozen=True)
class _Estimate:
    """Stated times of a model and its conversions.

    Attributes:
        model: The model.
        times: Times of its nodes.
        sizes: Value -> how many numbers it has.
        price: Price of a conversion.
    """

    model: ir.Model
    times: NodeTimes
    sizes: Mapping[str, int]
    price: Price

    @staticmethod
    def of(model: ir.Model, shapes: Mapping[str, tuple[int, ...]], costs: KernelCosts) -> _Estimate:
        price = Price(costs.conversion.call / 1e3, costs.conversion.value / 1e3)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        return _Estimate(model, stated_times(model, shapes, costs), sizes, price)

    def total(self, placement: Placement) -> float:
        """Estimate the microseconds of the model with some of its nodes on codes."""
        on_codes = placement.integer_nodes
        both = self.times.floats, self.times.integers
        spent = sum(both[name in on_codes].get(name, 0.0) for name in dict.fromkeys([*both[0], *both[1]]))
        return spent + sum(self.price.of(self.sizes.get(name, 0)) for name in converted_values(self.model, placement))
