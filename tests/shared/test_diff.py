"""Planted faults in real models come first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import ptq
from ptq import api
from ptq.models.load import load_model
from ptq.recipe import Recipe, Weights
from ptq.weights import Rtn
from tests.planted import change, clipped, scaled, wrong_scale
from tests.shared.workloads import evaluator

ROUNDED = Recipe(weights=Weights(Rtn()))

pytestmark = [
    pytest.mark.shared,
    # The evaluator, which is not ours, leaves files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_faults_in_resnet20_come_first(shared: Path) -> None:
    model = load_model(shared / "models/resnet20.onnx")
    calibration = evaluator(shared).calib("resnet20", 64)
    few = {name: array[:3] for name, array in calibration.items()}
    quantized = ptq.quantize(model, calibration, ROUNDED).delivery.model
    sound = api.diff(model, quantized, few)
    assert sound.float_sqnr_db is not None
    assert sound.float_sqnr_db > 50
    found = api.diff(model, wrong_scale(quantized, "getitem_24", 4), few)
    assert (found.findings[0].kind, found.layers[0].name) == ("wrong-weights", "getitem_24")
    found = api.diff(model, clipped(quantized, "getitem_18"), few)
    assert (found.findings[0].kind, found.layers[0].name) == ("clipped", "getitem_18")


def test_a_concat_of_unequal_ranges_in_squeezenet_comes_first(shared: Path) -> None:
    model = load_model(shared / "models/squeezenet.onnx")
    narrow_first_part(model, "cat", 1 / 50)
    calibration = evaluator(shared).calib("squeezenet", 16)
    quantized = ptq.quantize(model, calibration, ROUNDED).delivery.model
    found = api.diff(model, quantized, {k: v[:2] for k, v in calibration.items()})
    assert (found.findings[0].kind, found.findings[0].layer) == ("uneven-concat", "cat")
    assert found.findings[0].option.startswith("--exclude cat --exclude ")


def narrow_first_part(model: ir.Model, concat: str, factor: float) -> None:
    """Rescale what a Concat joins first, and the weights that read it, without changing what the model computes."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    part = values[concat].producer().inputs[0].producer().inputs[0].producer()  # type: ignore[union-attr]
    assert part is not None
    for value in part.inputs[1:]:
        change(model, str(value.name), scaled(slice(None), factor))  # type: ignore[union-attr]
    features = np.shape(part.inputs[1].const_value)[0]  # type: ignore[union-attr]
    for reader in (use.node for use in values[concat].uses()):
        change(model, str(reader.inputs[1].name), scaled(slice(0, features), 1 / factor, 1))  # type: ignore[union-attr]
