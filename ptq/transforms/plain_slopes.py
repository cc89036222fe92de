"""Activations with a slope per channel, written so that they take little time and have integer kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ptq.calibration.calibration_set import CalibrationSet
from ptq.passes import PadChannels, SlopesAsConvs
from ptq.passes.infer_shapes import annotate
from ptq.transforms.rewritten import Rewritten


@dataclass(frozen=True)
class PlainSlopes:
    """Write PRelu as convolutions of single channels, once channels are evened out, which goes through a PRelu.

    Attributes:
        lanes: Channels that the integer kernel of such convolutions takes at once; see `PadChannels`.
    """

    lanes: int = 1

    def rewrite(self, state: Rewritten, calibration: CalibrationSet) -> Rewritten:
        """Rewrite a copy of the model; see `SlopesAsConvs`."""
        count = sum(node.op_type == "PRelu" for node in state.model.graph)
        model = state.model.clone() if count else state.model
        if not count or not SlopesAsConvs()(model).modified:
            return state
        if self.lanes > 1 and PadChannels(self.lanes)(model).modified:
            annotate(model, calibration.first, calibration.custom_ops)
        note = "PRelu written as convolutions of single channels: onnxruntime's own takes ten times as long"
        return replace(state, model=model, notes=(*state.notes, note))
