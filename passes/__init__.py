"""Passes, graph to graph. Each is one frozen dataclass; `prepare` runs those that keep the model float, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ptq.core.arrays import Feed
from ptq.core.errors import EquivalenceError
from ptq.models.validation import require_finite_weights
from ptq.passes.channels_first import ChannelsFirst
from ptq.passes.check_equivalence import Original
from ptq.passes.fold_affine import FoldAffine
from ptq.passes.fold_batchnorm import FoldBatchNorm
from ptq.passes.fold_codes import FoldCodes
from ptq.passes.fold_front import FoldFront
from ptq.passes.fold_pads import FoldPads
from ptq.passes.infer_shapes import annotate, observe
from ptq.passes.insert_dynamic import InsertDynamic
from ptq.passes.insert_qdq import InsertQdq
from ptq.passes.join_squeezes import JoinSqueezes
from ptq.passes.lower_opset import LowerOpset
from ptq.passes.modules import note_modules
from ptq.passes.normalize import INT4_OPSET, FoldConstants, InlineFunctions, RaiseOpset, RemoveDropout, SumToAdd
from ptq.passes.pad_channels import PadChannels
from ptq.passes.placement import Placement
from ptq.passes.placing import place, place_weights
from ptq.passes.plain_activations import PlainActivations
from ptq.passes.plain_clip import PlainClip
from ptq.passes.plain_gemm import PlainGemm
from ptq.passes.pool_means import PoolMeans
from ptq.passes.slopes_as_convs import SlopesAsConvs
from ptq.passes.unfuse import FUNCTION_OPSET, Unfuse, values_to_look_at
from ptq.passes.unsigned_codes import UnsignedCodes
from ptq.passes.use_native import UseNative
from ptq.passes.widen import SAME_AS_HALF, WidenFloats
from ptq.target import INTEGER_OPS

PrepareStep = (
    InlineFunctions
    | LowerOpset
    | RaiseOpset
    | RemoveDropout
    | SumToAdd
    | FoldConstants
    | FoldCodes
    | UnsignedCodes
    | Unfuse
    | JoinSqueezes
    | ChannelsFirst
    | FoldPads
    | FoldBatchNorm
    | PlainGemm
    | PlainClip
    | PlainActivations
    | PoolMeans
    | FoldAffine
    | FoldFront
    | PadChannels
)
PREPARE: tuple[PrepareStep, ...] = (
    InlineFunctions(),
    LowerOpset(),
    RaiseOpset(),
    RemoveDropout(),
    SumToAdd(),
    FoldConstants(),
    FoldCodes(),
    UnsignedCodes(),
    Unfuse(),
    JoinSqueezes(),
    ChannelsFirst(),
    FoldPads(),
    FoldBatchNorm(),
    PlainGemm(),
    PlainClip(),
    PlainActivations(),
    PoolMeans(),
    FoldAffine(),
    FoldBatchNorm(),
    FoldFront(),
)
"""The order matters: functions hide nodes, the converter wants plain graphs, folding wants constants.

A bias may stand before a BatchNormalization, which then folds once that is in its layer.
"""

PREPARE_SMALL: tuple[PrepareStep, ...] = (*PREPARE, RaiseOpset(INT4_OPSET, required=False))
"""Steps for weights below eight bits; the opset is raised last, as the converter does better on a plain graph."""

PREPARE_BLOCKS: tuple[PrepareStep, ...] = (*PREPARE, RaiseOpset(INT4_OPSET))
"""Steps for scales per block, which older opsets cannot say."""

STREAMING_STEPS: tuple[PrepareStep, ...] = (
    InlineFunctions(),
    LowerOpset(),
    RaiseOpset(INT4_OPSET),
    RemoveDropout(),
    SumToAdd(),
    FoldConstants(),
)
"""Steps that can be done without reading weights."""

WHY_RAISED = {
    INT4_OPSET: "4-bit weights and scales per block need 21",
    FUNCTION_OPSET: "what stands for fused operators needs 17",
}


__all__ = [
    "PREPARE",
    "PREPARE_BLOCKS",
    "PREPARE_SMALL",
    "STREAMING_STEPS",
    "InsertDynamic",
    "InsertQdq",
    "LowerOpset",
    "PadChannels",
    "Placement",
    "PrepareStep",
    "SlopesAsConvs",
    "UseNative",
    "place",
    "place_weights",
    "prepare",
]


def prepare(
    model: ir.Model,
    feed: Feed,
    *,
    custom_ops: Sequence[str | Path] = (),
    steps: Sequence[PrepareStep] = PREPARE,
    proven: bool = True,
) -> tuple[ir.Model, tuple[str, ...]]:
    """Normalize a float model without changing what it computes, and prove it on one sample.

    Args:
        model: As exported. Not modified.
        feed: One sample.
        custom_ops: Libraries the model needs.
        steps: The passes, in order.
        proven: Whether to run the model before and after; not needed where nothing is made of it.

    Returns:
        The prepared model with types and shapes filled in, and what changed that a user should know.

    Raises:
        EquivalenceError: A pass changed an output; the message names the pass.
        InputError: The model does not run, or functions read weights that are not finite.
    """
    prepared, origin = model.clone(), model
    original = Original(model, feed, custom_ops)
    _ = original.outputs if proven else {}  # a model that does not run says so before anything else does
    if InlineFunctions()(prepared).modified:  # what functions read was not seen before
        require_finite_weights(prepared, "model")
    wider: tuple[str, ...] = ()
    if WidenFloats()(prepared).modified:
        if proven:
            original.require_same("WidenFloats", prepared, SAME_AS_HALF)
        wider = ("float16, bfloat16 and double are computed in float32; inputs and outputs keep their types",)
        model = prepared.clone()
        original = Original(model, feed, custom_ops)
    for step in steps:
        _take(step, prepared, feed, custom_ops)
    if proven:
        _prove(original, prepared, steps)
        _correct_ranks(prepared, original)
    annotate(prepared, feed, custom_ops)
    note_modules(prepared, origin)
    return prepared, (*wider, *_notes(model, prepared))


def _take(step: PrepareStep, model: ir.Model, feed: Feed, custom_ops: Sequence[str | Path]) -> None:
    """Take one step; fused operators that are written out may ask for shapes, which one run tells."""
    names = values_to_look_at(model) if isinstance(step, Unfuse) else []
    if names:
        inner = [name for name in names if name not in feed]
        arrays = {**feed, **dict(zip(inner, observe(model, inner, feed, custom_ops) if inner else [], strict=True))}
        step = Unfuse({name: arrays[name].shape for name in names})
    step(model)


def _prove(original: Original, prepared: ir.Model, steps: Sequence[PrepareStep]) -> None:
    """Refuse steps that changed what the model computes, naming the one that did."""
    try:
        original.require_same("prepare", prepared)
    except EquivalenceError:
        _name_the_culprit(original, steps)
        raise


def _correct_ranks(prepared: ir.Model, original: Original) -> None:
    """Declare outputs with as many axes as they have: onnxruntime's optimizers trust that, and some fail otherwise."""
    for value in prepared.graph.outputs:
        array = original.outputs.get(str(value.name))
        if value.shape is not None and type(array) is np.ndarray and len(value.shape) != array.ndim:
            value.shape = ir.Shape([None] * array.ndim)


def _name_the_culprit(original: Original, steps: Sequence[PrepareStep]) -> None:
    """Run step by step, so that the error carries the name of the pass that broke the model."""
    candidate = original.model.clone()
    for step in steps:
        _take(step, candidate, original.feed, original.custom_ops)
        original.require_same(type(step).__name__, candidate)


def _notes(model: ir.Model, prepared: ir.Model) -> tuple[str, ...]:
    notes = []
    before, after = model.opset_imports.get("", 0), prepared.opset_imports.get("", 0)
    if after < before:
        notes.append(f"opset lowered from {before} to {after}: onnxruntime has no integer operators in newer ones")
    if before < after:
        notes.append(f"opset raised from {before} to {after}: {WHY_RAISED.get(after, 'per-channel scales need 13')}")
    folded = _count(model, "BatchNormalization") - _count(prepared, "BatchNormalization")
    if folded > 0:
        notes.append(f"{folded} BatchNormalization folded into the layer before")
    inner = sum(node.op_type in INTEGER_OPS for node in prepared.graph.all_nodes())
    inner -= sum(node.op_type in INTEGER_OPS for node in prepared.graph)
    if inner:
        notes.append(f"{inner} layers inside If, Loop or Scan keep float kernels")
    return tuple(notes)


def _count(model: ir.Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph)
