"""Transforms by themselves: on a model as it is, with a calibration set that is looked at as often as they want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ptq.calibration.calibration_set import CalibrationSet
from ptq.calibration.reader import open_data
from ptq.calibration.replay import SampleReplay
from ptq.calibration.shards import CalibrationShards
from ptq.calibration.split import split_samples
from ptq.calibration.store import ArrayStore
from ptq.core.progress import silent
from ptq.models.source import input_specs
from ptq.passes.infer_shapes import annotate
from ptq.recipe import Recipe
from ptq.solving.choices import choices_of
from ptq.target import CPU_X86
from ptq.transforms import Rewritten, Transform


def rewritten(
    model: ir.Model, samples: Sequence[Mapping[str, Any]], transform: Transform, recipe: Recipe | None = None
) -> Rewritten:
    """What a transform makes of a model; its values get types and ranks, as preparing gives them."""
    annotate(model, samples[0])
    with ArrayStore(1 << 30) as store:
        split = split_samples(open_data(list(samples), input_specs(model)), hold_out=False)
        calibration = CalibrationSet(split, SampleReplay(store), CalibrationShards(), silent)
        return transform.rewrite(Rewritten(model, choices_of(recipe or Recipe(), CPU_X86, model)), calibration)
