"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptq.core.affine import (
    FloatArray,
    QuantParams,
    Range,
    choose_qparams,
    fake_quantize,
    nearest_level,
    per_scale_view,
    quantize,
)
from ptq.core.encoding import IntegerWeight, WeightEncoding
from ptq.core.grid_search import best_ratios
from ptq.core.problem import LayerProblem, Needs
from ptq.core.saturation import SaturationLimits
from ptq.core.spec import PerAxis, PerTensor, QuantSpec
from ptq.core.widths import Widths

MSE_RATIOS = np.linspace(1.0, 0.4, 61)
PATIENCE = 12
"""Ratios in a row without a gain after which a row is settled."""

AT_ONCE = 1 << 19
"""Weights that are tried at a time: few enough for the caches, enough for numpy to forget its overhead."""


@dataclass(frozen=True)
class Rtn:
    """Round every weight to the nearest code.

    Attributes:
        clip: `absmax` covers the largest weight of each scale; `mse` shrinks the range in steps of 1 % of it to the
            least squared error of the weights, never worse than `absmax` in that measure.
    """

    clip: Literal["absmax", "mse"] = "absmax"
    needs = Needs.WEIGHT
    independent_rows = True

    def quantize(self, problem: LayerProblem) -> WeightEncoding:
        """Choose a range per scale and round.

        Args:
            problem: Layer; only its weight and spec are read.

        Returns:
            Codes of shape [out, in] and one scale per row, block or tensor.
        """
        if problem.saturation is not None:
            return _within(problem, problem.saturation)
        if problem.widths is not None:
            return self._quantize_widths(problem, problem.widths)
        reach = self._reach(problem.weight, problem.spec)
        params = choose_qparams(reach, problem.spec)
        return IntegerWeight.of(quantize(problem.weight, params), params)

    def _quantize_widths(self, problem: LayerProblem, widths: Widths) -> IntegerWeight:
        """Words of several lengths, each weight with limits of its own."""
        weight, spec = problem.weight.astype(np.float64), problem.spec
        low, high = widths.limits(narrow_range=spec.narrow_range)
        shared = isinstance(spec.granularity, PerTensor)
        reach = (np.abs(weight) / high).max(None if shared else 1, initial=0.0) * spec.qmax

        def encode(ratio: FloatArray) -> IntegerWeight:
            params = choose_qparams(Range.of(-reach * ratio, reach * ratio), spec)
            steps = weight / np.reshape(params.scale, (-1, 1))
            return IntegerWeight.of(nearest_level(steps, low, high).astype(np.int8), params, widths)

        def errors(ratio: float, _: NDArray[np.intp]) -> tuple[FloatArray, None]:
            off = encode(np.full(reach.shape, ratio)).decode() - weight
            return np.square(off).sum(None if shared else 1).reshape(-1), None

        ratios = MSE_RATIOS if self.clip == "mse" else ()
        return encode(best_ratios(reach.size, ratios, errors).reshape(reach.shape))

    def _reach(self, weight: NDArray[np.float32], spec: QuantSpec) -> Range:
        rows, shape = per_scale_view(weight, spec.granularity)
        low, high = rows.min(1, initial=0.0), rows.max(1, initial=0.0)
        ratio = self._best_ratio(rows, low, high, spec) if self.clip == "mse" else np.ones(len(rows))
        return Range.of((low * ratio).reshape(shape), (high * ratio).reshape(shape))

    def _best_ratio(self, rows: NDArray[np.float32], low: FloatArray, high: FloatArray, spec: QuantSpec) -> FloatArray:
        rowwise = replace(spec, granularity=PerAxis(0))
        size = max(AT_ONCE // max(rows.shape[1], 1), 1)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        return np.concatenate([_best_ratios(rows[part], low[part], high[part], rowwise) for part in parts] or [low])


def _within(problem: LayerProblem, saturation: SaturationLimits) -> WeightEncoding:
    """The nearest levels that cannot overflow."""
    shared = isinstance(problem.spec.granularity, PerTensor)
    scale = (saturation.scale[:1].reshape(()) if shared else saturation.scale).astype(np.float32)
    steps: FloatArray = problem.weight / scale.reshape(-1, 1)
    levels = nearest_level(steps, saturation.low, saturation.high).astype(np.int8)
    params = QuantParams(scale, np.zeros(scale.shape, np.int8), problem.spec)
    return IntegerWeight.of(levels, params, problem.widths)


def _best_ratios(rows: NDArray[np.float32], low: FloatArray, high: FloatArray, spec: QuantSpec) -> FloatArray:
    """Per row the share of its range whose codes err least."""

    def errors(ratio: float, tried: NDArray[np.intp]) -> tuple[FloatArray, None]:
        params, weight = choose_qparams(Range.of(low[tried] * ratio, high[tried] * ratio), spec), rows[tried]
        return np.square(fake_quantize(weight, params) - weight, dtype=np.float64).sum(1), None

    return best_ratios(len(rows), MSE_RATIOS, errors, PATIENCE)
