"""Solving of streamed models: weights alone, one layer after the other, each read, solved, written and forgotten.

The path through the house is the same, prepare, solve, lower, verify; but neither model is ever whole in memory, so
the float model is not opened as one session. Its outputs are computed segment by segment.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Single
from ptq.core.decibels import NO_ERROR_DB, decibels
from ptq.core.encoding import IntegerWeight
from ptq.core.errors import UnsupportedModelError
from ptq.core.family import tag_of
from ptq.core.layer import LinearLayer
from ptq.core.layer_row import LayerRow
from ptq.core.plan import QuantPlan
from ptq.core.problem import LayerProblem, Needs
from ptq.core.progress import Progress
from ptq.core.solved_layer import ENCODING_PARTS
from ptq.core.spec import PerAxis, PerBlock
from ptq.delivery.workspace import Workspace
from ptq.files.checkpoints import Checkpoints, checkpoint_key
from ptq.models.source import INLINE_BYTES, weight_bytes
from ptq.passes import STREAMING_STEPS
from ptq.passes.graph import initializer_of
from ptq.passes.infer_shapes import infer_statically
from ptq.passes.insert_qdq import lower_one_by_one
from ptq.passes.modules import note_modules
from ptq.passes.placement import Excludes, Placement
from ptq.passes.placing import place_weights
from ptq.recipe import Recipe
from ptq.solving.choices import Choices, LayerChoice

CHUNK = 1 << 22
"""Weights that are solved at once: methods compute in float64, with several temporaries."""

BASE_BYTES = 160 * 2**20
COMPARED = 2
"""Number of samples on which a model of this size is compared."""

BLOCK = 32
"""Inputs under a scale where the recipe leaves it open: decoded at load, weights would be as large as before."""


def needs_streaming(model: ir.Model) -> bool:
    """Whether the weights are too large to be held more than once."""
    return weight_bytes(model) > INLINE_BYTES


def require_streamable(recipe: Recipe, given: Sequence[str]) -> None:
    """Refuse recipes that need the whole model at once.

    Args:
        recipe: Decisions.
        given: What else was asked for and is not looked at here, as the command line calls it.

    Raises:
        UnsupportedModelError: The recipe quantizes activations, its weight method looks at them, output features of
            one layer have words of several lengths, or something was asked for that is not looked at.
    """
    size = f"the model has more than {INLINE_BYTES / 1e9:.1f} GB of weights, and models of that size are"
    if not recipe.weight_only or recipe.weights.chosen.needs != Needs.WEIGHT:
        raise UnsupportedModelError(f"{size} quantized layer by layer: add --weight-only, and --weights rtn")
    if recipe.bit_plan is not None and recipe.bit_plan.has_rows:
        raise UnsupportedModelError(f"{size} quantized in blocks of one word length: give the bit plan bits by layer")
    timed = {"--max-latency-ratio": recipe.goals.max_latency_ratio, "--max-drop": recipe.goals.max_drop}
    timed |= {"--max-macs": recipe.max_macs}
    unmet = [*given, *(option for option, goal in timed.items() if goal is not None)]
    if unmet:
        raise UnsupportedModelError(
            f"{size} compared on {COMPARED} samples and not timed: leave out {', '.join(unmet)}"
        )


def streaming_bytes(prepared: ir.Model) -> int:
    """Estimate the memory that `stream` takes: its largest weight up to six times, and what any run takes."""
    sizes = [
        value.const_value.nbytes for value in prepared.graph.initializers.values() if value.const_value is not None
    ]
    return BASE_BYTES + 6 * max(sizes, default=0)


def prepare_streaming(model: ir.Model) -> ir.Model:
    """Normalize a model without running it. Weights stay on disk."""
    prepared = model.clone()
    for step in STREAMING_STEPS:
        step(prepared)
    infer_statically(prepared)
    note_modules(prepared, model)
    return prepared


@dataclass(frozen=True)
class Streamed:
    """Streamed model in integers.

    Attributes:
        model: Graph; the tensors are in the workspace.
        placement: Placement of the integers.
        rows: Rows of the report, a layer each.
    """

    model: ir.Model
    placement: Placement
    rows: tuple[LayerRow, ...]


def stream(
    prepared: ir.Model, settings: Choices, excluded: Excludes, workspace: Workspace, progress: Progress
) -> Streamed:
    """Quantize the weights of a prepared model, one layer in memory at a time.

    Args:
        prepared: Not modified.
        settings: Choices of the recipe.
        excluded: The user's exclusions.
        workspace: Folder for tensors and solved layers.
        progress: Called before each layer.

    Returns:
        The lowered model.

    Cost:
        Memory: the largest weight and its codes, and a few hundred MB.
    """
    workspace.restart()
    lowered = prepared.clone()
    placement = replace(place_weights(prepared, excluded), tables=(), stored=())
    rows: list[LayerRow] = []
    start = time.perf_counter()

    def plans() -> Iterator[tuple[LinearLayer, QuantPlan]]:
        for index, layer in enumerate(placement.layers):
            spent = time.perf_counter() - start
            left = f", {spent / index * (len(placement.layers) - index):.0f} s left" if index else ""
            progress(f"layer {index + 1} of {len(placement.layers)}: {layer.name}{left}")
            choice = _in_blocks(settings, layer)
            encoding, row = _solve(prepared, layer, choice, workspace)
            rows.append(row)
            yield layer, QuantPlan({}, {layer.name: encoding}, {})
            _release(prepared, layer.weight)

    lower_one_by_one(lowered, placement, plans(), workspace.store)
    return Streamed(lowered, placement, tuple(rows))


def _in_blocks(settings: Choices, layer: LinearLayer) -> LayerChoice:
    choice = settings.choice(layer)
    if isinstance(choice.spec.granularity, PerAxis):
        spec = replace(choice.spec, granularity=PerBlock(1, BLOCK))
        return replace(settings, weights=replace(choice, spec=spec), overrides={}).choice(layer)
    return choice


def _solve(
    model: ir.Model, layer: LinearLayer, choice: LayerChoice, workspace: Workspace
) -> tuple[IntegerWeight, LayerRow]:
    """Solve one layer, a few rows at a time, or restore it as it was solved before."""
    weight = layer.layout.to_matrix(initializer_of(model, layer.weight))
    numbers = np.ascontiguousarray(weight).data
    key = checkpoint_key(numbers, weight.shape, repr(choice), version("ptq"), version("numpy"))
    kept, solve = Checkpoints(workspace.folder, key), functools.partial(_solve_rows, layer.name, weight, choice)
    encoding = kept.restore_or_solve(layer.name, IntegerWeight, ENCODING_PARTS, solve)
    kept.write()
    error, signal, zeros = 0.0, 0.0, 0
    for rows in _chunks(weight):
        part = encoding.rows(rows)
        error += float(np.square(part.decode() - weight[rows]).sum(dtype=np.float64))
        signal += float(np.square(weight[rows]).sum(dtype=np.float64))
        zeros += part.zeros()
    row = LayerRow(
        layer.name, layer.op_type, encoding.num_bits, weight.size, "", 0, 0, 0, decibels(signal, error),
        NO_ERROR_DB, 0, tag_of(type(choice.method)), None, None, encoding.num_levels(), zeros / weight.size, 0,
    )  # fmt: skip
    return encoding, row


def _solve_rows(name: str, weight: Single, choice: LayerChoice) -> IntegerWeight:
    parts = []
    for rows in _chunks(weight) if choice.quantizer.independent_rows else [slice(None)]:
        part = choice.quantizer.quantize(LayerProblem(name, np.ascontiguousarray(weight[rows]), choice.spec))
        if not isinstance(part, IntegerWeight):
            raise TypeError(f"layer {name!r} came back as {type(part).__name__}")
        parts.append(part)
    return IntegerWeight.stack(parts)


def _chunks(weight: Single) -> Iterator[slice]:
    """Yield ranges of rows that are few enough to be solved at once."""
    step = max(CHUNK // weight.shape[1], 1)
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def _release(model: ir.Model, name: str) -> None:
    """Unmap a weight that was read from its file."""
    tensor = model.graph.initializers[name].const_value
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
