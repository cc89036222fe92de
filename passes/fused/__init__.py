"""Forms of fused operators: what onnxruntime's tools have fused, written as standard operators. A form is one entry.

A form takes a writer and returns the values that stand for the fused node's outputs, or None to leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from ptq.passes.fused.attention import attention, biases_before
from ptq.passes.fused.blocked import DOMAIN as BLOCKED
from ptq.passes.fused.blocked import POOLS, blocked_conv, blocked_pool, blocked_upsample, reorder_input, reorder_output
from ptq.passes.fused.channels import blocked_channels
from ptq.passes.fused.gelus import erf_gelu, quick_gelu, tanh_gelu
from ptq.passes.fused.norms import embed_norm, skip_norm, skip_rms_norm
from ptq.passes.fused.products import fused_conv, fused_gemm, fused_matmul
from ptq.passes.fused.writer import Outputs, Shapes, Writer

MICROSOFT = "com.microsoft"

FORMS: dict[tuple[str, str], Callable[[Writer], Outputs | None]] = {
    (MICROSOFT, "Attention"): attention,
    (MICROSOFT, "BiasGelu"): erf_gelu,
    (MICROSOFT, "EmbedLayerNormalization"): embed_norm,
    (MICROSOFT, "FastGelu"): tanh_gelu,
    (MICROSOFT, "FusedConv"): fused_conv,
    (MICROSOFT, "FusedGemm"): fused_gemm,
    (MICROSOFT, "FusedMatMul"): fused_matmul,
    (MICROSOFT, "Gelu"): erf_gelu,
    (MICROSOFT, "MultiHeadAttention"): biases_before,
    (MICROSOFT, "QuickGelu"): quick_gelu,
    (MICROSOFT, "SkipLayerNormalization"): skip_norm,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): skip_rms_norm,
    (MICROSOFT, "TransposeMatMul"): fused_matmul,
    (BLOCKED, "Conv"): blocked_conv,
    (BLOCKED, "ReorderInput"): reorder_input,
    (BLOCKED, "ReorderOutput"): reorder_output,
    (BLOCKED, "Upsample"): blocked_upsample,
    **{(BLOCKED, name): blocked_pool for name in POOLS},
}

ASKING: dict[tuple[str, str], tuple[int, ...]] = {
    (MICROSOFT, "Attention"): (0, 3),
    (MICROSOFT, "FusedMatMul"): (0, 1),
    (MICROSOFT, "TransposeMatMul"): (0, 1),
    (BLOCKED, "ReorderInput"): (0,),
}
"""Inputs of which a form may ask for the shape."""

__all__ = ["ASKING", "FORMS", "Outputs", "Shapes", "Writer", "blocked_channels"]
