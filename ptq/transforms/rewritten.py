"""State that transforms work on: the float model as it is by then, and all that is known of the rewriting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq.calibration.calibration_set import CalibrationSet
from ptq.passes.linear import name_of
from ptq.passes.placement import Excludes
from ptq.passes.selection import Exclusions
from ptq.solving.choices import Choices


@dataclass(frozen=True)
class Rewritten:
    """A float model that is easier to quantize, and how it came about.

    Attributes:
        model: Computes the same as the model that came.
        choices: How each layer will be quantized.
        aside: Value -> channels that no integer product reads any more: its grid need not reach them.
        beside: Products that compute those channels in float.
        notes: What was done, for the report.
        evened_out: Whether widths of channels moved into weights.
        axes: Weight of a recurrent layer -> axes that its scales run along; none if it stays float.
        floats: Layers that integers would ruin -> why.
        recurrent: LSTM layers that run on integers though grids are fixed beforehand: theirs are taken at every step.
        whole: The model before channels left it; None while all are there.
    """

    model: ir.Model
    choices: Choices
    aside: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    evened_out: bool = False
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
    recurrent: frozenset[str] = frozenset()
    whole: ir.Model | None = None

    def excludes(self, exclusions: Exclusions) -> Excludes:
        """Return the user's exclusions on this model, with the products in float beside others added."""
        excluded = exclusions.on(self.model)
        return lambda node: excluded(node) or ("carries outlier channels" if name_of(node) in self.beside else None)


class Transform(Protocol):
    """A rewriting of the float model."""

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Make the model easier to quantize without changing what it computes.

        Args:
            state: The model so far. Not modified.
            calibration: The calibration set, to be looked at as often as need be.

        Returns:
            The new state; `state` itself where nothing is gained.
        """
        ...
