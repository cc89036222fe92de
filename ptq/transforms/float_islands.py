"""Float islands: what is faster in float stays there, by stated times of kernels, so that all machines decide alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ptq.allocation.islands import find_islands
from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.sample import repeated
from ptq.core.kernel_costs import KernelCosts
from ptq.passes.infer_shapes import shapes_on
from ptq.passes.placement import Placement
from ptq.transforms.rewritten import Rewritten


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
        found = find_islands(
            state.model,
            lambda floats: self.place(replace(state, floats={**floats, **state.floats})),
            shapes,
            self.costs,
        )
        if not found.floats:
            return state
        note = f"{len(found.floats)} operators stay float, which by stated times of kernels saves {found.saved:.0%}"
        notes = (*state.notes, f"{note}; --optimize integers leaves none")
        return replace(state, floats={**found.floats, **state.floats}, notes=notes)
