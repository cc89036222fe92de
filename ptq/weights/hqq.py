"""Half-quadratic quantization: scales that leave large weights their errors. Looks at the weight alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import QuantParams, Range, choose_qparams, per_scale_view, quantize
from ptq.core.checks import require_within
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.problem import LayerProblem, Needs
from ptq.core.spec import PerAxis
from ptq.weights.rtn import Rtn

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Hqq:
    """Fit each scale to the weights without their outliers, whose errors are set apart by a shrinking operator.

    Source:
        Badri, Shaji, "Half-quadratic quantization of large machine learning models" (2023): minimise |W - Q|_p^p with
        p < 1 by half-quadratic splitting; e = shrink(W - Q, beta, p), then the parameters that suit W - e. Differs: the
        scale is fitted (the authors fit a zero point in float, which no kernel takes), rounds that do not lower the
        norm are not kept, and rows on which rounding has the smaller norm keep rounding.

    Attributes:
        norm: p, of the error.
        strength: beta at the start: larger sets less apart, in units of the largest weight.
        growth: Of beta per round.
        num_rounds: At most.
    """

    norm: float = 0.7
    strength: float = 10.0
    growth: float = 1.01
    num_rounds: int = 20
    needs = Needs.WEIGHT
    independent_rows = True

    def __post_init__(self) -> None:
        require_within(self, norm=(0.01, 1), strength=(1e-3, 1e9), growth=(1, 100), num_rounds=(0, 10_000))

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Fit the scales and round.

        Args:
            problem: Layer; only its weight and spec are read.

        Returns:
            Codes of shape [out, in] and one scale per row, block or tensor; words of several lengths, and codes that
            must not overflow, as `rtn` finds them.
        """
        if problem.widths is not None or problem.saturation is not None:
            return Rtn("mse").quantize(problem)
        rows, shape = per_scale_view(problem.weight, problem.spec.granularity)
        limits = Range.of(rows.min(1, initial=0.0), rows.max(1, initial=0.0))
        params = self._fit(rows, choose_qparams(limits, replace(problem.spec, granularity=PerAxis(0))))
        grid = QuantParams(params.scale.reshape(shape), params.zero_point.reshape(shape), problem.spec)
        return IntegerWeight.of(quantize(problem.weight, grid), grid)

    def _fit(self, rows: NDArray[np.float32], start: QuantParams) -> QuantParams:
        unit = np.maximum(np.abs(rows).max(1, initial=0.0), 1e-30).astype(np.float64)[:, None]
        beta, params, best = self.strength, start, start
        least = np.full(len(rows), np.inf)
        for _ in range(self.num_rounds + 1):
            levels = quantize(rows, params).astype(np.float64) - params.zero_point.astype(np.float64)[:, None]
            error = (rows - levels * params.scale[:, None]) / unit
            norm = np.power(np.abs(error), self.norm).sum(1)
            better = norm < least
            if not better.any():
                break
            least = np.minimum(norm, least)
            best = replace(best, scale=np.where(better, params.scale, best.scale).astype(np.float32))
            shrunk = np.abs(error) - np.power(np.abs(error) + 1e-12, self.norm - 1) / beta
            apart = np.maximum(shrunk, 0) * np.sign(error)
            wanted, energy = rows - apart * unit, np.square(levels).sum(1)
            fitted = (wanted * levels).sum(1) / np.maximum(energy, 1e-30)
            usable = (energy > 0) & (fitted > 0) & (fitted.astype(np.float32) >= np.finfo(np.float32).tiny)
            params = replace(params, scale=np.where(usable, fitted, params.scale).astype(np.float32))
            beta *= self.growth
        return best
