"""What a model is, and what quantization would do to it; no data needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptq.calibration.reader import random_data
from ptq.core.errors import UnsupportedModelError
from ptq.huge import is_huge, prepare_huge, streaming_bytes
from ptq.modelfile import ModelSource, input_specs, load_model, naming, runnable_source, weight_bytes
from ptq.passes import place, place_weights, prepare
from ptq.target import host_target
from ptq.trial import require_survivable


def inspect_model(source: ModelSource, custom_ops: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Describe a float model.

    Args:
        source: The model.
        custom_ops: Libraries it needs.

    Returns:
        Inputs, outputs, operators, weights, and which layers would run on integers or stay float and why. Ready for
        JSON.

    Raises:
        PtqError: The model cannot be read or run.
    """
    model = load_model(source)
    huge, notes = is_huge(model), tuple[str, ...]()
    if huge:
        prepared = prepare_huge(model)
        needs = f"that takes about {streaming_bytes(prepared) / 2**20:.0f} MB of memory"
        notes = (f"too large to be held in memory: quantized layer by layer, weights alone (--weight-only); {needs}",)
    else:
        sample = next(iter(random_data(input_specs(model), 1, 0)))
        with naming(source):
            require_survivable(runnable_source(source, model), sample.feed, custom_ops)
            prepared, notes = prepare(model, sample.feed, custom_ops=custom_ops)
    operators = Counter(node.op_type for node in model.graph)
    facts: dict[str, Any] = {
        "inputs": [str(spec) for spec in input_specs(model)],
        "outputs": [str(value.name) for value in model.graph.outputs],
        "opset": model.opset_imports.get("", 0),
        "producer": model.producer_name or "unknown",
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "weight_bytes": weight_bytes(model),
        "target": host_target().name,
        "preparation": list(notes),
    }
    try:
        placement = place_weights(prepared) if huge else place(prepared)
    except UnsupportedModelError as error:
        return facts | {"quantizable": [], "left_float": {}, "reason": str(error)}
    layers = [
        {"name": layer.name, "op_type": layer.op_type, "weight": list(layer.layout.shape)} for layer in placement.layers
    ]
    return facts | {"quantizable": layers, "left_float": dict(sorted(placement.left_float.items()))}
