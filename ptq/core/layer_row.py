"""Results of one linear layer for reports: no solver and no graph is needed to read one."""

from __future__ import annotations

from dataclasses import dataclass

from ptq.core.distribution import Distribution


@dataclass(frozen=True)
class LayerRow:
    """Results of quantizing one linear layer.

    Attributes:
        name: The layer.
        op_type: Conv, Gemm or MatMul.
        num_bits: Word length of its weight.
        num_weights: How many weights it has.
        points: Which features have words of several times that length, and what came of a split that was tried.
        num_macs: Products per sample with one word for each weight.
        extra_macs: Products that longer words add in kernels of that word length.
        executed_macs: Those of them that this target's kernels really execute.
        weight_sqnr_db: Signal to error of the weight, dB.
        input_sqnr_db: Signal to error of its input on the calibration set, dB.
        bias_guarded: Output channels whose weight scale was raised so that the integer bias fits.
        method: Tag of the weight method that was used.
        output_sqnr_db: Signal to error of its output on the calibration set, everything before it quantized, constant
            parts left out where a bias takes them up, dB; None if the method looked at the weight alone.
        bound_db: What path following without clipping guarantees for that figure, dB; likewise.
        levels: How many different codes the weight uses.
        sparsity: Share of weights that became 0.
        accumulator: Largest magnitude that a 32-bit sum of this layer can reach, whatever its input, the bias included;
            0 where nothing is summed in integers.
        grid: First of the values that share a grid with its input; empty if the input has none.
        spread: How its weights lie; None if they were never in memory at once.
    """

    name: str
    op_type: str
    num_bits: int
    num_weights: int
    points: str
    num_macs: int
    extra_macs: int
    executed_macs: int
    weight_sqnr_db: float
    input_sqnr_db: float
    bias_guarded: int
    method: str
    output_sqnr_db: float | None
    bound_db: float | None
    levels: int
    sparsity: float
    accumulator: int
    grid: str = ""
    spread: Distribution | None = None
